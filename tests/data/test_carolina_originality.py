"""The whole way from shards to a dataset: what it holds, that it is never half done, and what stops it."""

import gzip
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import carolina_originality
from flexqwen.data import build, card
from flexqwen.data import corpus as corpus_module
from flexqwen.data.build import SCHEMA, Parameters
from flexqwen.data.sample.generate import true_originality
from tests.conftest import DOCUMENTS, files

ROOT = Path(__file__).parents[2]
CONFIGS = ("gold", "matched", "gold_typology", "matched_typology", "tokenizer", "index")


def run(*arguments, expected: int = 0, **options) -> subprocess.CompletedProcess:
    """Runs the command line in a process of its own."""
    command = [sys.executable, str(ROOT / "carolina_originality.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == expected, done.stderr
    return done


def call(capsys, *arguments, expected: int = 0) -> str:
    """Runs the command line in this process; returns what it printed: the output, or the one line of an error."""
    if not expected:
        carolina_originality.main([str(argument) for argument in arguments])
        return capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        carolina_originality.main([str(argument) for argument in arguments])
    assert stop.value.code == expected
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.fixture
def corpus(sample_corpus, tmp_path) -> Path:
    """A copy of the sample corpus, to be damaged."""
    return shutil.copytree(sample_corpus, tmp_path / "corpus")


def read(folder: Path, config: str, split: str = "train") -> pa.Table:
    return pq.read_table(sorted((folder / "data" / config).glob(f"{split}-*.parquet")))


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


# What it holds


def test_columns(built):
    for config in CONFIGS:
        names = [name for name in SCHEMA.names if config != "index" or name != "text"]
        assert read(built, config).schema.names == names
        assert read(built, config).schema.field("tokens").type == pa.int32()


def test_scores_are_the_planted_truth(built, sample_documents):
    truth = true_originality([document.text for document in sample_documents])
    index = read(built, "index")
    found = dict(zip(index["id"].to_pylist(), index["ngram_originality"].to_pylist(), strict=True))
    assert len(found) == DOCUMENTS == len(index)
    for document, percent in zip(sample_documents, truth, strict=True):
        assert found[document.id] == pytest.approx(percent)
    assert manifest(built)["agreement"]["column"]["pearson"] > 0.999


def test_texts_and_headers_are_the_corpus_s(built, sample_documents):
    by_id = {document.id: document for document in sample_documents}
    for config in CONFIGS[:-1]:
        for row in read(built, config).to_pylist():
            document = by_id[row["id"]]
            assert (row["text"], row["originality"]) == (document.text, document.originality)
            assert (row["tokens"], row["typology"]) == (document.tokens, document.genre.typology)


def test_gold_is_original_and_paired_row_by_row(built):
    for one, other in (("gold", "matched"), ("gold_typology", "matched_typology")):
        a, b = read(built, one), read(built, other)
        assert len(a) == len(b) > 50
        lengths = a["tokens"].to_numpy(), b["tokens"].to_numpy()
        assert (np.abs(lengths[0] - lengths[1]) <= np.maximum(1, 0.02 * lengths[0])).all()
        assert (a["originality"].to_numpy() - b["originality"].to_numpy() >= 10).all()
        assert min(lengths[0].min(), lengths[1].min()) >= 21
    assert read(built, "gold_typology")["typology"] == read(built, "matched_typology")["typology"]


def test_disjoint(built):
    ids = {config: set(read(built, config)["id"].to_pylist()) for config in CONFIGS}
    splits = ("validation", "test", "validation_original", "test_original", "validation_unoriginal", "test_unoriginal")
    heldout = [set(read(built, "heldout", split)["id"].to_pylist()) for split in splits]
    assert sum(map(len, heldout)) == len(set().union(*heldout)) > 0
    training = {config: ids[config] for config in CONFIGS[:-1]}
    assert not set().union(*heldout) & set().union(*training.values())
    assert not ids["gold"] & ids["matched"] and not ids["gold_typology"] & ids["matched_typology"]
    assert not ids["tokenizer"] & set().union(*(training[c] for c in CONFIGS[:4]))
    assert set().union(*heldout, *training.values()) <= ids["index"]


def test_no_training_document_shares_half_its_13_grams_with_the_held_out(built):
    def grams(text: str) -> list[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return [tuple(words[i : i + 13]) for i in range(len(words) - 12)]

    heldout = pq.read_table(built / "data" / "heldout")["text"].to_pylist()
    known = {gram for text in heldout for gram in grams(text)}
    largest = 0
    for config in CONFIGS[:-1]:
        for text in read(built, config)["text"].to_pylist():
            own = grams(text)
            largest = max(largest, sum(gram in known for gram in own) / max(1, len(own)))
    assert 0 < largest < 0.5
    checks = manifest(built)["checks"]
    assert max(c["value"] for n, c in checks.items() if "13-grams" in n) == pytest.approx(largest, abs=1e-6)


def test_manifest(built, sample_corpus):
    found = manifest(built)
    assert found["documents"] == {"read": DOCUMENTS, "kept": DOCUMENTS, "dropped": {}}
    assert all(check["passed"] for check in found["checks"].values())
    assert found["parameters"] == {"seed": 0, "documents": None, "measure": "header", "skip_bad_shards": False}
    for name, shard in found["shards"]["used"].items():
        xml = gzip.decompress((sample_corpus / "corpus" / name).read_bytes())
        assert hashlib.sha256(xml).hexdigest() == shard["sha256"]
    assert "of 190" in found["splits"]["gold/train"]["size"]


def test_loads_by_name_and_streams(built, monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "carolina_originality").symlink_to(built)
    shutil.copy(ROOT / "carolina_originality.py", tmp_path)  # a script of that name beside the folder does no harm
    monkeypatch.chdir(tmp_path)
    for config in CONFIGS:
        loaded = datasets.load_dataset("carolina_originality", config, split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded["id"][:] == read(built, config)["id"].to_pylist()
    heldout = datasets.load_dataset("carolina_originality", "heldout", cache_dir=str(tmp_path / "cache"))
    assert {"validation", "test", "validation_original", "test_unoriginal"} < set(heldout)
    stream = datasets.load_dataset("carolina_originality", "matched", split="train", streaming=True)
    assert next(iter(stream))["text"] == read(built, "matched")["text"][0].as_py()
    assert not (built / "carolina_originality.py").exists()


def test_card(built):
    text = (built / "README.md").read_text()
    assert text.startswith("---\npretty_name: Carolina Originality, generated sample\n")
    for figure in re.findall(r"\]\((figures/.*?)\)", text):
        assert (built / figure).read_bytes().startswith(b"\x89PNG")
    assert "Typology confounds originality" in text and "`gold_typology`" in text


def test_a_sample_is_called_so_and_no_other_corpus(built, corpus, tmp_path, capsys):
    def front(folder: Path) -> dict:
        return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])

    assert manifest(built)["generated"] is True
    assert front(built)["source_datasets"] == ["original"] and front(built)["license"] == "apache-2.0"
    text = (built / "README.md").read_text()
    assert (
        "not Corpus Carolina: every text here was generated" in text and "texts come from Corpus Carolina" not in text
    )
    assert "every text was generated" in call(capsys, "inspect", built)
    assert "every text was generated" in call(capsys, "inspect", corpus, "--workers", 1)

    (corpus / "corpus/GENERATED.txt").unlink()
    output = tmp_path / "out"
    assert "generated" not in call(capsys, "build", "--corpus", corpus, "--output", output, "--workers", 1)
    assert manifest(output)["generated"] is False
    assert front(output)["source_datasets"] == ["carolina-c4ai/corpus-carolina"]
    text = (output / "README.md").read_text()
    assert "texts come from Corpus Carolina" in text and "CC BY 4.0" in text and "generated" not in text


def test_legends_hide_no_data():
    lengths = np.geomspace(21, 20_000, 400).astype(int)  # a histogram that fills its frame
    configs = ("gold", "matched", "gold_typology", "matched_typology")
    names = {"taxonomy": ["wikis"] * 400, "tokens": lengths, "originality": np.arange(400) // 4}
    scored = build.Scored(pa.table(names), [], lengths, lengths, np.arange(400) / 4)
    training = dict.fromkeys(configs, np.arange(400))
    for figure in (card.header_figure(scored), card.length_figure(lengths, training)):
        figure.draw_without_rendering()
        legends = [(axis, axis.get_legend()) for axis in figure.axes if axis.get_legend()]
        assert legends
        for axis, legend in legends:
            assert legend.get_window_extent().y0 >= axis.get_window_extent().y1
            assert not legend.get_window_extent().overlaps(axis.title.get_window_extent()) or not axis.get_title()


# The same inputs give the same bytes, and are not read twice


def test_bytes_do_not_depend_on_workers_or_memory(built, sample_corpus, tmp_path, monkeypatch):
    run("build", "--corpus", sample_corpus, "--output", tmp_path / "two", "--workers", 2, "--memory", 0.25)
    assert files(tmp_path / "two") == files(built)
    monkeypatch.setattr(build.originality, "_FEW_RECORDS", 1000)
    monkeypatch.setattr(build, "_BATCH_CHARACTERS", 20_000)
    build.build(sample_corpus, tmp_path / "many", Parameters(), workers=1)
    assert files(tmp_path / "many") == files(built)


def test_reuse_refuse_overwrite(sample_corpus, tmp_path, capsys):
    output = tmp_path / "out"
    build = ("build", "--corpus", sample_corpus, "--output", output, "--workers", 1)
    assert "out: built" in call(capsys, *build)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    printed = call(capsys, *build)
    assert "already built from this, reused" in printed and "gold/train" in printed
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert "give --overwrite" in call(capsys, *build, "--seed", 1, expected=2)
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    call(capsys, *build, "--seed", 1, "--overwrite")
    assert manifest(output)["parameters"]["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_foreign_folder_is_left_alone(sample_corpus, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("!")
    build = ("build", "--corpus", sample_corpus, "--output", tmp_path / "mine", "--workers", 1)
    for overwrite in ((), ("--overwrite",)):
        assert "not built by this" in call(capsys, *build, *overwrite, expected=2)
        assert "no sample corpus" in call(capsys, "sample", tmp_path / "mine", *overwrite, expected=2)
    (tmp_path / "mine" / "manifest.json").write_text('["of another tool"]')
    assert "not built by this" in call(capsys, *build, "--overwrite", expected=2)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "!"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_filled(sample_corpus, built, tmp_path, capsys):
    call(capsys, "build", "--corpus", sample_corpus, "--output", tmp_path, "--workers", 1)
    assert files(tmp_path) == files(built)


def test_an_output_that_cannot_be(sample_corpus, tmp_path, capsys):
    (tmp_path / "file").write_text("!")
    output = tmp_path / "file" / "out"
    build = ("build", "--corpus", sample_corpus, "--output", output, "--workers", 1)
    assert "cannot be written" in call(capsys, *build, expected=2)
    assert "cannot be written" in call(capsys, "sample", output, expected=2)


def test_limit_of_documents(sample_corpus, tmp_path, capsys):
    build = ("build", "--corpus", sample_corpus, "--output", tmp_path / "out", "--workers", 1, "--documents", 400)
    assert f"dropped {DOCUMENTS - 400}: beyond --documents" in call(capsys, *build)
    index = read(tmp_path / "out", "index")
    assert len(index) == 400 and len(set(index["taxonomy"].to_pylist())) == 7


def test_measure_ngram(corpus, tmp_path, capsys):
    """The recomputed measure makes splits where headers state none."""
    name = "wikis/pt-BR/WIKa"
    xml = gzip.decompress((corpus / f"corpus/{name}.xml.gz").read_bytes()).decode()
    xml = re.sub(r'<measure type="originality".*?/>', "", xml).encode()
    (corpus / f"corpus/{name}.xml.gz").write_bytes(gzip.compress(xml))
    sums = corpus / "corpus/wikis/checksum.sha256"
    digest = hashlib.sha256(xml).hexdigest()
    sums.write_text(re.sub(r"\w+\tpt-BR/WIKa.xml", f"{digest}\tpt-BR/WIKa.xml", sums.read_text()))
    build = ("build", "--corpus", corpus, "--workers", 1)
    call(capsys, *build, "--output", tmp_path / "ngram", "--measure", "ngram")
    found = manifest(tmp_path / "ngram")
    assert found["documents"]["kept"] == DOCUMENTS and all(c["passed"] for c in found["checks"].values())
    gold, matched = (read(tmp_path / "ngram", c)["ngram_originality"].to_numpy() for c in ("gold", "matched"))
    assert (gold - matched >= 10).all()
    assert read(tmp_path / "ngram", "index")["originality"].null_count > 20
    call(capsys, *build, "--output", tmp_path / "header")
    assert manifest(tmp_path / "header")["documents"]["dropped"]["originality: missing"] > 20


# Never half done


KILLED = """
import os, signal, sys
left = int(sys.argv[1])
def counted(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
import numpy, pyarrow.parquet
os.replace, os.unlink = counted(os.replace), counted(os.unlink)
numpy.save = counted(numpy.save)
pyarrow.parquet.ParquetWriter.write_table = counted(pyarrow.parquet.ParquetWriter.write_table)
from flexqwen.data.build import Parameters, build
build(sys.argv[2], sys.argv[3], Parameters(), workers=1)
"""


def visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.endswith(".partial")]


def test_killed_at_many_points_it_goes_on_to_the_same_bytes(built, sample_corpus, tmp_path):
    output = tmp_path / "out"
    finished, deaths = 0, 0
    for writes in range(4, 200, 5):  # killed at the 4th write, then at the 9th after what is left, and so on
        command = [sys.executable, "-c", KILLED, str(writes), str(sample_corpus), str(output)]
        code = subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL).returncode
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        assert visible(tmp_path) == [] or files(output) == files(built)
        now = len(list(tmp_path.glob("out.partial/documents/*.json")))
        assert now >= finished or output.exists()  # finished shards stay
        finished = now
    assert code == 0 and deaths >= 8
    assert files(output) == files(built)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_at_any_time_with_workers(built, sample_corpus, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, str(ROOT / "carolina_originality.py"), "build", "--workers", "2"]
    command += ["--corpus", str(sample_corpus), "--output", str(output)]
    for delay in np.linspace(0.3, 1.9, 5):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.kill()
        process.wait()
        assert visible(tmp_path) == [] or files(output) == files(built)
        assert _ends(process.pid)  # no worker writes on behind the next run
    run(*command[2:])
    assert files(output) == files(built)


def _ends(session: int) -> bool:
    """Whether no process of the session is left within seconds."""
    deadline = time.monotonic() + 5
    while _session(session) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _session(session)


def _session(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def hear_interrupts() -> None:
    """A shell's background jobs, and what they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupted_it_says_so_and_goes_on_to_the_same_bytes(built, sample_corpus, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, str(ROOT / "carolina_originality.py"), "build", "--workers", "2"]
    command += ["--corpus", str(sample_corpus), "--output", str(output)]
    finished = 0
    # As soon as there is such a file: workers start, have read a shard, have hashed one.
    for sign in ("*", "documents/*.json", "*/grams/*.npy"):
        process = subprocess.Popen(
            command, start_new_session=True, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
        )
        while process.poll() is None and not any((tmp_path / "out.partial").glob(sign)):
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        error = process.communicate()[1]
        assert (process.returncode, error) == (130, "interrupted\n")
        assert _ends(process.pid) and visible(tmp_path) == []
        now = len(list(tmp_path.glob("out.partial/documents/*.json")))
        assert now >= finished
        finished = now
    assert finished
    run(*command[2:])
    assert files(output) == files(built)


@pytest.mark.parametrize("limit", [20_000, 150_000])
def test_a_full_disk_is_an_error(built, sample_corpus, tmp_path, limit):
    """Files that cannot grow stand for a full disk: the same failed write, to whoever writes."""
    output = tmp_path / "out"
    build = ("build", "--corpus", sample_corpus, "--output", output, "--workers", 2)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    error = run(*build, expected=2, preexec_fn=small_files).stderr
    assert error.count("\n") == 1 and "cannot be written" in error and "make room" in error
    assert visible(tmp_path) == []
    run(*build)
    assert files(output) == files(built)


def test_a_second_build_at_once_is_refused(sample_corpus, tmp_path, capsys):
    with build._locked(tmp_path / "out"):
        words = ("build", "--corpus", sample_corpus, "--output", tmp_path / "out", "--workers", 1)
        assert "another build is at work" in call(capsys, *words, expected=2)


# What stops it


def test_a_bad_shard_stops_the_build_or_is_left_out(corpus, tmp_path, capsys):
    path = corpus / "corpus/university_domains/UNIa.xml.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    build = ("build", "--corpus", corpus, "--output", tmp_path / "out", "--workers", 1)
    error = call(capsys, *build, expected=2)
    assert str(path) in error and "damaged gzip file after" in error and "--skip_bad_shards" in error
    assert visible(tmp_path) == ["corpus"]
    printed = call(capsys, *build, "--skip_bad_shards")
    assert "1 bad" in printed
    found = manifest(tmp_path / "out")
    assert list(found["shards"]["bad"]) == ["university_domains/UNIa.xml.gz"]
    assert found["shards"]["bad"]["university_domains/UNIa.xml.gz"].startswith("is a damaged gzip file after")
    assert "university_domains" not in read(tmp_path / "out", "index")["taxonomy"].to_pylist()


def test_what_a_failed_build_has_read_is_not_read_again(corpus, built, tmp_path, capsys, monkeypatch):
    path = corpus / "corpus/university_domains/UNIa.xml.gz"
    good = path.read_bytes()
    path.write_bytes(good[:500])
    build = ("build", "--corpus", corpus, "--output", tmp_path / "out", "--workers", 1)
    seen = []

    def read_shard(shard, *options):
        seen.append(shard.name)
        return corpus_module.read_shard(shard, *options)

    monkeypatch.setattr(build, "read_shard", read_shard)
    error = call(capsys, *build, expected=2)
    assert f"; finished shards are kept in {tmp_path / 'out.partial'} for the next build" in error
    first = seen[:-1]
    assert first and seen[-1] == "university_domains/UNIa.xml.gz"
    seen.clear()
    path.write_bytes(good)
    call(capsys, *build)
    assert seen and not set(seen) & set(first)
    assert files(tmp_path / "out") == files(built)


def test_the_first_bad_shard_is_named_with_workers_too(corpus, tmp_path):
    for name in ("wikis/pt/WIKb", "legislative_branch/LEGa"):
        (corpus / f"corpus/{name}.xml.gz").write_bytes(b"?")
    done = run("build", "--corpus", corpus, "--output", tmp_path / "out", "--workers", 2, expected=2)
    assert done.stderr.count("\n") == 1 and re.search(r"(LEGa|WIKb).xml.gz: is a damaged gzip", done.stderr)


def test_ids_twice_in_the_corpus_are_counted_once(corpus, tmp_path, capsys):
    folder = corpus / "corpus/wikis"
    shutil.copy(folder / "pt/WIKb.xml.gz", folder / "pt/WIKz.xml.gz")
    sums = (folder / "checksum.sha256").read_text()
    digest = re.search(r"(\w+)\tpt/WIKb.xml", sums)[1]
    (folder / "checksum.sha256").write_text(f"{sums}{digest}\tpt/WIKz.xml\n{'0' * 64}\tpt/WIKy.xml\n")
    (folder / "Thumbs.db").write_text("?")
    printed = call(capsys, "build", "--corpus", corpus, "--output", tmp_path / "out", "--workers", 1)
    assert "1 listed but absent" in printed and "wikis/Thumbs.db" in printed
    found = manifest(tmp_path / "out")
    assert found["documents"]["dropped"] == {"duplicate id": found["documents"]["read"] - DOCUMENTS}
    assert found["shards"]["absent"] == ["wikis/pt/WIKy.xml.gz"]
    assert len(read(tmp_path / "out", "index")) == DOCUMENTS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build",), "--corpus"),
        (("build", "--corpus", "nowhere"), "nowhere: no such folder"),
        (("build", "--corpus", "."), "give the folder that holds"),
        (("build", "--corpus", ""), "--corpus: is empty, give a path"),
        (("build", "--corpus", ".", "--output", ""), "--output: is empty, give a path"),
        (("inspect", ""), "is empty, give a path"),
        (("build", "--corpus", ".", "--documents", "0"), "give 1 or more"),
        (("build", "--corpus", ".", "--workers", "0"), "give 1 or more"),
        (("build", "--corpus", ".", "--memory", "0"), "give 0.25"),
        (("build", "--corpus", ".", "--measure", "guess"), "invalid choice"),
        (("build", "--corpus", ".", "--sed", "1"), "--sed"),
        (("sample", "here", "--documents", "0"), "give 1 or more"),
        (("inspect", "nowhere"), "no such folder"),
        (("bild",), "bild"),
    ],
)
def test_wrong_use_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in call(capsys, *arguments, expected=2)
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_corpus(tmp_path, capsys):
    call(capsys, "sample", tmp_path / "tiny", "--documents", 12)
    build = ("build", "--corpus", tmp_path / "tiny", "--output", tmp_path / "out", "--workers", 1)
    assert "give more shards" in call(capsys, *build, expected=2)
    assert visible(tmp_path) == ["tiny"]


# sample and inspect


def test_sample_reuse_refuse_overwrite(tmp_path, capsys):
    command = ("sample", tmp_path / "sample", "--documents", 50)
    call(capsys, *command)
    before = files(tmp_path / "sample")
    assert "reused" in call(capsys, *command)
    assert "give --overwrite" in call(capsys, *command, "--seed", 1, expected=2)
    assert files(tmp_path / "sample") == before
    call(capsys, *command, "--seed", 1, "--overwrite")
    assert files(tmp_path / "sample") != before


def test_inspect_a_corpus(corpus, capsys):
    (corpus / "corpus/wikis/pt/WIKc.xml.gz").unlink()
    (corpus / "corpus/wikis/pt/WIKb.xml.gz").write_bytes(b"?")
    printed = call(capsys, "inspect", corpus, "--workers", 1)
    assert "9 shards, 1 listed but absent" in printed
    assert "WIKb.xml.gz: is a damaged gzip file" in printed
    assert re.search(r"^legislative_branch +1 +0 +56 +56 ", printed, re.MULTILINE)


def test_inspect_a_dataset(built, capsys):
    printed = call(capsys, "inspect", built, "--workers", 1)
    assert "gold/train" in printed and "Pearson 1.000" in printed and re.search(r"^wikis +256 ", printed, re.MULTILINE)


def test_inspect_a_document(write_corpus, sample_documents, capsys):
    from flexqwen.data.sample.generate import shard_xml

    passage = "a lua cheia iluminava o porto velho quando os barcos voltavam do mar"
    first, second, third = [d for d in sample_documents if d.shard == "wikis/pt/WIKb"][:3]
    first = first._replace(text=f"Era tarde: {passage}\nDepois choveu.")
    second = second._replace(text=f"{passage} E nada mais.")
    folder = write_corpus({"wikis/pt/WIKb": shard_xml([first, second]), "wikis/pt/WIKc": shard_xml([third])})
    printed = call(capsys, "inspect", folder, "--id", first.id, "--workers", 1)
    assert f"words 3-15, characters 11-{11 + len(passage)}, in 1:" in printed
    assert f"«{passage}»" in printed and f"{second.id} (7 7-grams)" in printed and third.id not in printed
    assert "7 of them stand in 1 other documents of the corpus: originality 36.4 %" in printed
    assert "no document has the id" in call(capsys, "inspect", folder, "--id", "WIK9x", "--workers", 1, expected=2)


def test_inspect_a_document_of_a_dataset(built, capsys):
    row = read(built, "matched").to_pylist()[0]
    printed = call(capsys, "inspect", built, "--id", row["id"], "--workers", 1)
    assert row["id"] in printed and "other texts in the dataset" in printed


# The real corpus


@pytest.fixture(scope="session")
def real(real_corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("real") / "carolina_originality"
    build.build(real_corpus, output, Parameters(), workers=os.cpu_count())
    return output


@pytest.mark.real_data
def test_real_shards(real):
    found = manifest(real)
    assert all(check["passed"] for check in found["checks"].values())
    assert found["documents"]["kept"] > 900_000 and found["shards"]["absent"]
    agreement = found["agreement"]
    assert agreement["documents"] > 300_000
    for reading in ("column", "among_long"):
        assert agreement[reading]["pearson"] >= 0.95 and agreement[reading]["spearman"] >= 0.92
    assert found["splits"]["gold/train"]["documents"] > 40_000


@pytest.mark.real_data
def test_real_splits(real):
    gold, matched = read(real, "gold"), read(real, "matched")
    assert (gold["originality"].to_numpy() - matched["originality"].to_numpy() >= 10).all()
    index = read(real, "index").select(["tokens", "originality"])
    short = index["tokens"].to_numpy() <= 20
    assert (index["originality"].to_numpy()[short] == 0).all()
    assert pq.ParquetFile(real / "data/gold/train-00000-of-00001.parquet").metadata.num_row_groups > 1
