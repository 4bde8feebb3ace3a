"""No input reaches a traceback: commands on damaged files end well, or in one line `error: ...` and exit status 2.

Each command is given 3 mutations of its inputs, or as many as FLEXQWEN_MUTATIONS says, such as 200.
"""

import contextlib
import gzip
import json
import os
import random
import re
import resource
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoTokenizer

import carolina_originality
import eval as evaluation
import train
from flexqwen import __main__ as flexqwen
from flexqwen.data.sample.generate import sample_documents, write_sample
from flexqwen.data.tokenizer import QWEN3_ROLES
from flexqwen.data.trace import Index
from flexqwen.study import runner
from flexqwen.training import doctor
from tests.helpers.hub_server import WRITE, HubServer
from tests.helpers.mutations import mutate
from tests.helpers.runs import CONFIG, ROOT, connect, forked_context, options

MUTATIONS = int(os.environ.get("FLEXQWEN_MUTATIONS", 3))
RUN = "runs/hybrid-shift-64"
SMALL = {"max_steps": 2, "save_steps": 1, "eval_steps": 2, "warmup_steps": 0, "logging_steps": 1}
EVAL = ["--dataset", "dataset", "--documents", "3"]
STUDY = "configs/study.yaml"
TINY = {  # a study that is run
    "variants": {"adamw": {}},
    "grid": [{"variant": "adamw", "causal_fraction": "1/2"}],
    "seeds": [0],
    "measure": {"tasks": {"memorisation": {"limit": 4}}, "heldout": ["test"], "documents": 3, "modes": ["causal"]},
    "compare": {},
    "training": {**CONFIG, **SMALL, "dataset": "dataset", "tokenizer": "tokenizer", "token_stores": "tokens"},
}


def train_main(argv):
    changes = {**SMALL, "report_to": "none", "token_stores": "tokens"}
    train.main([*options("dataset", "tokenizer", "runs", **changes), *argv])


COMMANDS = {  # what is run, its arguments, the inputs that are damaged, and others that it reads
    "build": (carolina_originality.main, ["build", "--corpus", "corpus", "--workers", "1"], ["corpus"], []),
    "inspect": (carolina_originality.main, ["inspect", "dataset", "--workers", "1"], ["dataset"], []),
    "inspect a corpus": (carolina_originality.main, ["inspect", "corpus", "--workers", "1"], ["corpus"], []),
    "trace": (
        carolina_originality.main,
        ["trace", "dataset", "--text", "o museu e a casa e os rios", "--words", "2", "--workers", "1"],
        ["dataset", "dataset.trace"],
        [],
    ),
    "trace generations": (
        carolina_originality.main,
        ["trace", "dataset", "--generations", "generations.jsonl", "--words", "2", "--workers", "1"],
        ["generations.jsonl"],
        ["dataset", "dataset.trace"],
    ),
    "sample again": (carolina_originality.main, ["sample", "sampled", "--documents", "100"], ["sampled"], []),
    "build of texts": (carolina_originality.main, ["build", "--corpus", "texts", "--workers", "1"], ["texts"], []),
    "push": (carolina_originality.main, ["push", "dataset", "--repo", "org/carolina"], ["dataset"], []),
    "tokenizer": (flexqwen.main, ["tokenizer", "--dataset", "dataset", "--vocab_size", "400"], ["dataset"], []),
    "adapt": (flexqwen.main, ["tokenizer", "--adapt", "qwen3"], ["qwen3"], []),
    "train by a config": (
        train.main,
        ["config.yaml", "--max_steps", "2"],
        ["config.yaml"],
        ["dataset", "tokenizer", "tokens"],
    ),
    "train on a dataset": (train_main, [], ["dataset", "tokenizer"], []),
    "train on tokens": (train_main, [], ["tokens"], ["dataset", "tokenizer"]),
    "train a model": (train_main, ["--model_name_or_path", "model"], ["model"], ["dataset", "tokenizer", "tokens"]),
    "resume": (train_main, [], [RUN], ["dataset", "tokenizer", "tokens"]),
    "eval": (evaluation.main, ["--model", "model", *EVAL], ["model", "dataset"], []),
    "eval again": (
        evaluation.main,
        ["--model", "model", *EVAL, "--output", "measured"],
        ["measured"],
        ["model", "dataset"],
    ),
    "compare": (
        evaluation.main,
        ["--compare", "measured", "others", "--output", "compared"],
        ["measured", "others"],
        [],
    ),
    "doctor": (flexqwen.main, ["doctor", "config.yaml", "--seconds", "0"], ["config.yaml"], []),
    "export": (flexqwen.main, ["export", "model", "exported"], ["model"], []),
    "publish": (
        flexqwen.main,
        ["publish", RUN, "--repo", "org/model", "--results", "measured"],
        [RUN, "measured"],
        ["tokenizer"],
    ),
    "study run": (
        flexqwen.main,
        ["study", "run", "tiny.yaml", "--workers", "1"],
        ["results/tiny", "runs/tiny"],
        ["tiny.yaml", "dataset", "tokenizer", "tokens"],
    ),
    "study report": (flexqwen.main, ["study", "report", STUDY], [STUDY, "results/study"], []),
    "study status": (flexqwen.main, ["study", "status", STUDY], [STUDY], []),
}


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def choose_file(place: Path, entries: list[str], source: random.Random) -> Path:
    """One of the files of these entries that a command may read; every kind of file as often as another."""
    files = [file for entry in entries for file in [place / entry, *sorted((place / entry).rglob("*"))]]
    kinds: dict[str, list[Path]] = {}
    for file in files:
        if file.is_file() and file.suffix not in (".png", ".pdf", ".py") and file.name != "results.md":
            kinds.setdefault(file.suffix, []).append(file)
    return source.choice(kinds[source.choice(sorted(kinds))])


@pytest.fixture(scope="module")
def whole(built, tokenizer_folder, tmp_path_factory):
    """A folder of whole inputs."""
    place = tmp_path_factory.mktemp("whole")
    copy(built, place / "dataset")
    copy(tokenizer_folder, place / "tokenizer")
    Index(place / "dataset")
    write_sample(place / "corpus", 100)
    write_sample(place / "sampled", 100)
    (place / "texts").mkdir()
    texts = [{"id": document.id, "text": document.text} for document in sample_documents(1500)]
    pq.write_table(pa.Table.from_pylist(texts[:500]), place / "texts/first.parquet")
    for name, part in (("texts/second.jsonl", texts[500:1000]), ("generations.jsonl", texts[:5])):
        (place / name).write_text("".join(json.dumps(text) + "\n" for text in part))
    (place / "texts/third.txt.gz").write_bytes(gzip.compress("\n".join(text["text"] for text in texts[1000:]).encode()))
    study = sorted((ROOT / "results").glob("*/cells"))[0].parent
    copy(ROOT / "configs" / f"{study.name}.yaml", place / STUDY)
    for file in (study / "items.json", *sorted(study.glob("cells/*"))[3:9:3]):
        copy(file, place / "results/study" / file.relative_to(study))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(runner.multiprocessing, "get_context", lambda method: forked_context())
        train_main([])
        shutil.copy(f"{RUN}/config.yaml", ".")
        shutil.copytree(f"{RUN}/best", "model")
        evaluation.main(["--model", "model", *EVAL, "--output", "measured"])
        evaluation.main(["--model", f"{RUN}/step_000001", *EVAL, "--output", "others"])
        tokenizer = AutoTokenizer.from_pretrained("tokenizer")
        tokenizer.add_special_tokens({"additional_special_tokens": [*QWEN3_ROLES.values()]})
        tokenizer.save_pretrained("qwen3")
        shutil.rmtree(f"{RUN}/step_000002")
        os.remove(f"{RUN}/finished.json")
        Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
        flexqwen.main(COMMANDS["study run"][1])
    return place


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


def call(main, arguments, capsys) -> tuple[int, str]:
    """Runs a command; its exit status, and the line of its error or ""."""
    capsys.readouterr()
    try:
        main(arguments)
        status = 0
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert (status, len(errors)) in ((0, 0), (2, 1)) and "Traceback" not in printed, printed
    return status, "".join(errors)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_damaged_input_ends_in_one_line(name, whole, hub, tmp_path, monkeypatch, capsys):
    connect(hub.url, str(tmp_path / "cache"), WRITE, monkeypatch)
    monkeypatch.setattr(runner.multiprocessing, "get_context", lambda method: forked_context())
    monkeypatch.setattr(doctor, "count_saved", lambda *_: 0.0)  # which compiles a layer, for many seconds
    main, arguments, damaged, read = COMMANDS[name]
    for number in range(MUTATIONS):
        source = random.Random(f"{name} {number}")
        place = tmp_path / str(number)
        for entry in (*damaged, *read):
            copy(whole / entry, place / entry)
        file = choose_file(place, damaged, source)
        what = f"{name} {number}: {file.relative_to(place)}: {mutate(file, source)}"
        monkeypatch.chdir(place)
        start = time.monotonic()
        try:
            error = call(main, arguments, capsys)[1]
            # It names the file, or what the file is of; a wrong value of a config may be what is not there.
            names = file.relative_to(place).parts
            assert not error or file.suffix == ".yaml" or any(name in error for name in names), error
        except BaseException as error:
            raise AssertionError(what) from error
        assert time.monotonic() - start < 60, what
        shutil.rmtree(place)


@contextlib.contextmanager
def limited(kind: int, value: int):
    """This process with less of something; what it has already stays."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


WRITERS = ["build", "tokenizer", "train on a dataset", "eval", "compare", "export"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(name, whole, tmp_path, monkeypatch, capsys):
    """As a limit of a file's size is one: both are met in the middle of a write."""
    main, arguments, damaged, read = COMMANDS[name]
    for entry in (*damaged, *read):
        copy(whole / entry, tmp_path / entry)
    monkeypatch.chdir(tmp_path)
    with limited(resource.RLIMIT_FSIZE, 300):
        status, error = call(main, arguments, capsys)
    assert status == 2 and "File too large" in error
    assert not [path for path in tmp_path.rglob("*.partial") if name != "build"]
    assert call(main, arguments, capsys)[0] == 0


@pytest.mark.parametrize("name", WRITERS)
def test_an_output_that_cannot_be_made_ends_in_one_line(name, whole, tmp_path, monkeypatch, capsys):
    main, arguments, damaged, read = COMMANDS[name]
    for entry in (*damaged, *read):
        copy(whole / entry, tmp_path / entry)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    output = {"export": ["file/exported"], "train on a dataset": ["--output_dir", "file/runs"]}
    arguments = [word for word in arguments if word not in ("exported", "compared", "--output")]
    status, error = call(main, arguments + output.get(name, ["--output", "file/output"]), capsys)
    assert status == 2 and re.search(r"\bfile\b.*(Not a directory|File exists).*; (name|pass) another", error), error


def test_too_few_open_files_end_in_one_line(whole, monkeypatch, capsys):
    monkeypatch.chdir(whole)
    main, arguments, *_ = COMMANDS["inspect a corpus"]
    with limited(resource.RLIMIT_NOFILE, 3):
        status, error = call(main, arguments, capsys)
    assert status == 2 and "ulimit -n" in error
