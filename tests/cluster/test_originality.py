"""jobs/originality.py on processes and on a Ray cluster of two machines: the builder's scores, whoever is killed."""

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flexqwen.data.build import Parameters, build
from flexqwen.files import read_json
from tests.helpers.datasets import ROOT, read_split
from tests.helpers.hub_server import READ, File, HubServer
from tests.helpers.runs import connect

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
    run(corpus[0], tmp_path / "out", "--workers", 2, "--tasks", 2)  # of several files each
    assert list(read_scores(tmp_path / "out").items()) == list(corpus[1].items())  # in the order of the corpus


def test_ray_gives_the_scores_of_the_builder(corpus, cluster, tmp_path):
    run(corpus[0], tmp_path / "out", "--executor", "ray", "--memory", 0.1, RAY_ADDRESS=cluster.address)
    assert len(list((tmp_path / "out/counts").iterdir())) > (1 if len(corpus[1]) > 1000 else 0)
    assert read_scores(tmp_path / "out") == corpus[1]


def test_files_without_a_document(sample_documents, tmp_path):
    """Empty files among others take no part, in a task of their own as well as beside others."""
    rows = [{"id": document.id, "text": document.text} for document in sample_documents]
    folder = tmp_path / "corpus"
    folder.mkdir()
    schema = pa.Table.from_pylist(rows).schema
    for name, part in (("a", []), ("b", rows[:300]), ("c", []), ("d", rows[300:500])):
        pq.write_table(pa.Table.from_pylist(part, schema), folder / f"{name}.parquet")
    (folder / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[500:], {"text": None}]))
    (folder / "f.jsonl").touch()
    (folder / "g.jsonl").write_text("\n")
    (folder / "h.jsonl").write_text('{"text": null}\n{"text": " "}\n')
    build(folder, tmp_path / "built", Parameters())
    truth = read_truth(tmp_path / "built")
    assert len(truth) == len(rows)
    for number in (7, 2):
        output = tmp_path / f"out{number}"
        run(folder, output, "--workers", 1, "--tasks", number)
        assert read_scores(output) == truth


def test_the_commit_of_each_dataset_is_kept(sample_documents, tmp_path, monkeypatch):
    """Another commit is another corpus, though its files have the same names and sizes."""
    main = runpy.run_path(str(ROOT / "jobs/originality.py"))["main"]
    with HubServer() as server:
        connect(server.url, str(tmp_path / "cache"), READ, monkeypatch)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        commits = []
        for number, name in enumerate(("org/one", "org/two")):
            table = pa.table({"text": [document.text for document in sample_documents[number * 50 :][:50]]})
            pq.write_table(table, content := io.BytesIO())
            repo = server.new("dataset", name, {"data/train-0.parquet": content.getvalue()})
            commits.append(f"hf://datasets/{name}@{repo.branches['main']}")
        words = ["--corpus", "hf://datasets/org/one", "hf://datasets/org/two"]
        words += ["--output", str(tmp_path / "out"), "--workers", "1"]
        main(words)
        assert " and ".join(commits) in read_json(tmp_path / "out/inputs.json")
        assert len(read_scores(tmp_path / "out")) == 100
        repo.commit("main", {"README.md": File(b"?", False)}, "more")
        with pytest.raises(SystemExit):
            main(words)


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
