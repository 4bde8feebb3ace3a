"""jobs/originality.py on processes and on a Ray cluster of two machines: the builder's scores, whoever is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flexqwen.data.build import Parameters, build
from tests.helpers.datasets import ROOT, read_split

pytest.importorskip("datatrove")
cluster_utils = pytest.importorskip("ray.cluster_utils")


@pytest.fixture(scope="module")
def cluster():
    """Two machines of one core each, and one that only leads; as processes here."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    found = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        found.add_node(num_cpus=1)
    found.wait_for_nodes()
    yield found
    found.shutdown()


def start(corpus, output, *options, **environment) -> subprocess.Popen:
    words = [sys.executable, ROOT / "jobs/originality.py", "--corpus", corpus, "--output", output, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(list(map(str, words)), env=environment, stderr=subprocess.PIPE, text=True)


def run(*arguments, expected: int = 0, **environment) -> str:
    process = start(*arguments, **environment)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == expected, said
    return said


def read_scores(output: Path) -> dict[str, float]:
    files = sorted((output / "scores").iterdir())
    table = pa.concat_tables(pq.read_table(file) for file in files)
    found = dict(zip(table["id"].to_pylist(), table["ngram_originality"].to_pylist(), strict=True))
    assert len(found) == len(table)  # none stands twice
    return found


def read_truth(dataset: Path) -> dict[str, float]:
    index = read_split(dataset, "index")
    return dict(zip(index["id"].to_pylist(), index["ngram_originality"].to_pylist(), strict=True))


@pytest.fixture(scope="module", params=["sample", "real"])
def corpus(request) -> tuple[Path, dict[str, float]]:
    """A corpus, and the scores that the builder gives its documents."""
    if request.param == "sample":
        folder, dataset = request.getfixturevalue("sample_corpus"), request.getfixturevalue("built")
    else:
        folder = request.getfixturevalue("real_corpus")
        dataset = request.getfixturevalue("tmp_path_factory").mktemp("real") / "carolina_originality"
        build(folder, dataset, Parameters())
    return folder, read_truth(dataset)


def test_processes_give_the_scores_of_the_builder(corpus, tmp_path):
    run(corpus[0], tmp_path / "out", "--workers", 2, "--tasks", 5)
    assert read_scores(tmp_path / "out") == corpus[1]


def test_ray_gives_the_scores_of_the_builder(corpus, cluster, tmp_path):
    run(corpus[0], tmp_path / "out", "--executor", "ray", "--memory", 0.1, RAY_ADDRESS=cluster.address)
    assert len(list((tmp_path / "out/counts").iterdir())) > (1 if len(corpus[1]) > 1000 else 0)
    assert read_scores(tmp_path / "out") == corpus[1]


def kill_worker(output: Path, process) -> None:
    """SIGKILLs a process that is at work on a task, known by the folder that it writes."""
    while not (found := list(output.glob("grams/*.partial"))):
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(int(found[0].name.split(".")[-2]), signal.SIGKILL)


def test_a_killed_process_is_told_and_the_same_again_does_the_rest(sample_corpus, built, tmp_path):
    process = start(sample_corpus, tmp_path / "out", "--workers", 2)
    kill_worker(tmp_path / "out", process)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 2 and "grams: a worker process was killed" in said.splitlines()[-1]
    run(sample_corpus, tmp_path / "out", "--workers", 2)
    assert read_scores(tmp_path / "out") == read_truth(built)
    assert not list((tmp_path / "out").glob("*/*.partial"))


def test_ray_does_a_killed_task_again(sample_corpus, built, cluster, tmp_path):
    process = start(sample_corpus, tmp_path / "out", "--executor", "ray", "--memory", 0.5, RAY_ADDRESS=cluster.address)
    kill_worker(tmp_path / "out", process)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert read_scores(tmp_path / "out") == read_truth(built)
