"""To the Hub and back, with the real client and a Hub on localhost: dataset, run, checkpoints, results."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import safetensors.torch
import yaml
from huggingface_hub import ModelCard, constants, parse_eval_result_entries
from transformers import AutoConfig

import carolina_originality
import eval as evaluation
from flexqwen import loading, remote
from flexqwen.evaluation.results import write_results
from flexqwen.files import file_digest, read_json, remove_path
from flexqwen.hub import model_card
from flexqwen.hub import publisher as publishing
from flexqwen.hub.export import main as export_main
from flexqwen.hub.repository import Repository
from flexqwen.hub.restore import compare, restore, restore_tokenizer
from flexqwen.remote import fetch_snapshot
from flexqwen.training.arguments import check, parse
from flexqwen.training.checkpoints import last_checkpoint
from tests.helpers.hub_server import READ, WRITE, HubServer
from tests.helpers.results import result
from tests.helpers.runs import connect, logged, options, run, same_weights, start, wait_for_step
from tests.helpers.tiny import CLASSES

DATASET, MODEL, RUN = "org/carolina_originality", "org/flexqwen", "hybrid-shift-64"


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def client(hub, place):
    """The client of this process speaks to the Hub on localhost."""
    with pytest.MonkeyPatch.context() as patch:
        connect(hub.url, str(place / "home"), WRITE, patch)
        yield patch


@pytest.fixture(scope="module")
def dataset(hub, client, built):
    carolina_originality.main(["push", str(built), "--repo", DATASET])
    return hub.repos["dataset", DATASET]


@pytest.fixture(scope="module")
def whole(built, tokenizer_folder, place):
    """A run that was never interrupted nor published."""
    assert run(options(built, tokenizer_folder, place / "whole"), place / "whole-log") == 0
    return place / "whole" / RUN


@pytest.fixture(scope="module")
def interrupted(hub, dataset, built, tokenizer_folder, place):
    """A run that was published and interrupted while its uploads did not move; what it printed."""
    moving = threading.Event()
    hub.fail("PUT", "/large/", moving, times=100)
    pushing = {"push_to_hub": True, "hub_model_id": MODEL, "hub_token": WRITE}
    arguments = options(built, tokenizer_folder, place / "one", **pushing, save_total_limit=2)
    process = start(arguments, place / "one-log", hub=(hub.url, str(place / "one-home"), READ))
    wait_for_step(place / "one" / RUN, 6, process)
    os.kill(process.pid, signal.SIGINT)
    moving.set()
    process.join(300)
    hub.faults.clear()
    return process.exitcode, (place / "one-log").read_text()


@pytest.fixture(scope="module")
def resumed(hub, interrupted, place):
    """The same run, finished on a machine that has neither dataset nor tokenizer nor checkpoint."""
    arguments = options(DATASET, place / "two" / "tokenizer", place / "two", hub_model_id=MODEL, push_to_hub=True)
    arguments += ["--token_stores", str(place / "two" / "tokens")]
    code = run(arguments, place / "two-log", hub=(hub.url, str(place / "two-home"), WRITE))
    printed = (place / "two-log").read_text()
    assert code == 0, printed
    return printed


def test_training_is_not_held_up_and_what_is_there_loads_at_every_commit(hub, interrupted, place):
    code, printed = interrupted
    assert code == 130 and "the same command resumes it" in printed and f"hub:        {hub.url}/{MODEL}" in printed
    repo = hub.repos["model", MODEL]
    first, *later = list(repo.commits.values())[1:]
    assert {"README.md", "modeling_flexqwen.py", "configuration_flexqwen.py", "tokenizer.json"} <= first.keys()
    assert not any(path.endswith(".safetensors") for path in first)
    for files in later:  # a checkpoint is there whole or not at all
        for folder in {"/".join(path.split("/")[:2]) for path in files if "/step_" in path}:
            assert {f"{folder}/{name}" for name in ("model.safetensors", "optimizer.pt", "sums.json")} <= files.keys()
    assert not any("training_args" in path or path.endswith(".partial") for path in repo.files)


def test_an_interrupted_run_goes_on_from_the_hub_to_the_same_weights(hub, whole, resumed, place):
    assert "resuming from step_" in resumed and f"{RUN} was fetched from" in resumed
    folder = place / "two" / RUN
    assert same_weights(folder / "step_000012", whole / "step_000012")
    assert same_weights(folder / "best", whole / "best") and same_weights(folder, whole)  # which loads as its best
    assert logged(folder) == logged(whole)
    published = hub.repos["model", MODEL].files
    for file in ("best/model.safetensors", "step_000012/optimizer.pt", "metrics.jsonl", "config.yaml", "loss.png"):
        assert published[f"{RUN}/{file}"] == (folder / file).read_bytes()
    assert any(path.startswith(f"{RUN}/logs/") for path in published)
    assert not [path for path in (place / "two").iterdir() if "partial" in path.name]


LOAD = """
import json, sys, torch, transformers
from datasets import load_dataset
repo, run, revision, tag, dataset, *classes = sys.argv[1:]
there = {"revision": revision, "trust_remote_code": True}
found = {"classes": {}}
for name in classes:
    model = getattr(transformers, name).from_pretrained(repo, **there)
    found["classes"][name] = type(model).__name__
tokenizer = transformers.AutoTokenizer.from_pretrained(repo, **there)
model = transformers.AutoModelForCausalLM.from_pretrained(repo, **there)
found["weight"] = model.model.norm.weight.sum().item()
written = transformers.pipeline("text-generation", repo, **there)("O Brasil", max_new_tokens=3)
filled = transformers.pipeline("fill-mask", repo, **there)("O Brasil é um <mask> grande.")
found["pipelines"] = [written[0]["generated_text"], len(filled)]
masked = transformers.AutoModelForMaskedLM.from_pretrained(repo, **there)
several = tokenizer("O <mask> é um <mask> grande.", return_tensors="pt")
found["masks"] = int((masked.fill(**several) == tokenizer.mask_token_id).sum())
ids = tokenizer("O Brasil é grande.", return_tensors="pt").input_ids
twins = {"qwen3": transformers.AutoModelForCausalLM, "qwen3-bidirectional": transformers.AutoModel}
twins = {name: auto.from_pretrained(repo, subfolder=f"{run}/{name}", revision=revision) for name, auto in twins.items()}
with torch.no_grad():
    one, two = twins["qwen3"](ids).logits, twins["qwen3-bidirectional"](ids)[0]
    same = [torch.equal(one, model(ids).logits), torch.equal(two, model.model(ids, is_causal=False)[0])]
found["twins"] = [[type(twin).__name__ for twin in twins.values()], same]
best = transformers.AutoModelForCausalLM.from_pretrained(repo, subfolder=f"{run}/best", **there)
found["same"] = torch.equal(best(ids).logits, model(ids).logits)
step = transformers.AutoModelForCausalLM.from_pretrained(repo, revision=tag, trust_remote_code=True)
found["step"] = step.model.norm.weight.sum().item()
rows = load_dataset(dataset, "gold", split="train")
streamed = load_dataset(dataset, "gold", split="train", streaming=True)
found["rows"], found["same"] = len(rows), found["same"] and next(iter(streamed)) == rows[0]
print(json.dumps(found))
"""


def test_everything_loads_from_the_hub_alone(hub, resumed, built, place):
    repo = hub.repos["model", MODEL]
    pinned, tag = repo.branches["main"], min(tag for tag in repo.tags if tag.startswith("step_"))
    newer = dict(repo.commits[pinned])
    for file in ("model.safetensors", f"{RUN}/best/model.safetensors"):
        newer[file] = newer["README.md"]  # what comes after the pin does not load at all
    repo.commit("main", newer, "broken later")
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(place / "three-home"), "HF_TOKEN": READ}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, MODEL, RUN, pinned, tag, DATASET, *CLASSES],
        cwd=place,
        env=own | {"HF_HUB_ETAG_TIMEOUT": "60", "HF_HUB_DOWNLOAD_TIMEOUT": "60"},  # a busy machine is no failure
        capture_output=True,
        text=True,
    )
    repo.commit("main", repo.commits[pinned], "mended")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["classes"] == CLASSES
    weights = safetensors.torch.load_file(place / "two" / RUN / "best" / "model.safetensors")
    assert found["weight"] == pytest.approx(weights["model.norm.weight"].sum().item())
    assert found["pipelines"][0].startswith("O Brasil") and found["pipelines"][1] == 5
    assert found["twins"] == [["Qwen3ForCausalLM", "Qwen3Model"], [True, True]] and found["masks"] == 0
    weights = safetensors.torch.load(repo.files[f"{RUN}/{tag}/model.safetensors"])
    assert found["step"] == pytest.approx(weights["model.norm.weight"].sum().item())
    assert found["rows"] == read_json(built / "manifest.json")["splits"]["gold/train"]["documents"] and found["same"]


def test_the_dataset_is_tagged_and_pushed_again_without_a_commit(hub, dataset, client, built, tmp_path, capsys):
    manifest = read_json(built / "manifest.json")
    (tag,) = dataset.tags
    assert tag == f"v{manifest['versions']['flexqwen']}-{manifest['inputs'][:8]}"
    assert dataset.tags[tag] == dataset.branches["main"]
    names = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
    assert dataset.files.keys() == names | {".gitattributes"}
    assert f'load_dataset("{DATASET}", "gold"' in dataset.files["README.md"].decode()
    commits, requests = len(dataset.commits), len(hub.requests)
    carolina_originality.main(["push", str(built), "--repo", DATASET])
    assert len(dataset.commits) == commits
    assert not any(request.startswith("PUT") for request in hub.requests[requests:])

    changed = tmp_path / "carolina_originality"
    shutil.copytree(built, changed)
    (changed / "README.md").write_text((built / "README.md").read_text() + "\nOne line more.\n")
    (changed / "carolina_originality.py").write_text("raise SystemExit")
    files = dict(dataset.commits[dataset.branches["main"]])
    files |= {"carolina_originality.py": files["README.md"], "data/gold/train-old.parquet": files["README.md"]}
    dataset.commit("main", files, "by hand")
    requests = len(hub.requests)
    carolina_originality.main(["push", str(changed), "--repo", DATASET, "--tag", "v2"])
    assert dataset.files.keys() == names | {".gitattributes"} and dataset.tags["v2"] == dataset.branches["main"]
    assert not any(request.startswith("PUT") for request in hub.requests[requests:])  # the card alone went up

    tagged = dataset.tags["v2"]
    (changed / "README.md").write_text((built / "README.md").read_text() + "\nAnother line.\n")
    capsys.readouterr()
    carolina_originality.main(["push", str(changed), "--repo", DATASET, "--tag", "v2"])
    assert dataset.tags["v2"] == tagged != dataset.branches["main"]
    assert f"commit {dataset.branches['main']}; the tag v2 stays at {tagged}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "holds no finished dataset"),
        (lambda folder: shutil.rmtree(folder / "data" / "gold"), "no split gold/train"),
        (lambda folder: (folder / "manifest.json").write_text('{"dataset": "other"}'), "holds no finished dataset"),
    ],
)
def test_what_is_no_finished_build_is_not_pushed(hub, client, built, tmp_path, capsys, spoil, message):
    shutil.copytree(built, tmp_path / "spoiled")
    spoil(tmp_path / "spoiled")
    with pytest.raises(SystemExit):
        carolina_originality.main(["push", str(tmp_path / "spoiled"), "--repo", "org/spoiled"])
    assert message in capsys.readouterr().err and ("dataset", "org/spoiled") not in hub.repos


def test_nothing_is_pushed_over_other_content_or_another_build(hub, dataset, client, built, tmp_path, capsys):
    repo = hub.new("dataset", "org/other", {"notes.txt": b"mine"})
    with pytest.raises(SystemExit):
        carolina_originality.main(["push", str(built), "--repo", "org/other"])
    assert "org/other holds something else" in capsys.readouterr().err and len(repo.commits) == 1
    other = tmp_path / "other"
    shutil.copytree(built, other)
    manifest = read_json(built / "manifest.json")
    (other / "manifest.json").write_text(json.dumps(manifest | {"seed": 5}))
    commits = len(dataset.commits)
    with pytest.raises(SystemExit):
        carolina_originality.main(["push", str(other), "--repo", DATASET])
    assert "is of another build; give another --tag" in capsys.readouterr().err and len(dataset.commits) == commits


def test_the_card_tells_what_the_records_of_all_runs_say(hub, resumed, whole, client, built, place):
    run_folder = place / "two" / RUN
    evaluation.main(["--model", str(run_folder / "best"), "--dataset", str(built), "--documents", "6"])
    publishing.main([str(run_folder), "--repo", MODEL])
    shutil.copytree(whole, place / "more" / "hybrid-shift-128")
    publishing.main([str(place / "more" / "hybrid-shift-128"), "--repo", MODEL])

    files = hub.repos["model", MODEL].files
    text = files["README.md"].decode()
    results = read_json(run_folder / "eval-best" / "results.json")["results"]
    card = ModelCard(text)
    values = {round(row["value"], 4) for row in results}
    assert {found.metric_value for found in card.data.eval_results} == values
    for row in results:
        assert f"{row['value']:.3f} [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]" in text
    entries = parse_eval_result_entries(yaml.safe_load(files[".eval_results/bits_per_byte.yaml"]))
    bits = {round(row["value"], 4) for row in results if row["metric"] == "bits_per_byte"}
    assert {entry.value for entry in entries} == bits and {entry.dataset_id for entry in entries} == {DATASET}
    last = [line for line in logged(run_folder) if "eval_loss_causal" in line][-1]
    assert text.count("finished at step 12") == 2 and "in training, step" not in text
    for said in (
        f"`gold` of `{DATASET}`",
        f"causal {last['eval_loss_causal']:.3f}, masked {last['eval_loss_masked']:.3f}",
        f"{last['tokens_seen']:,}, padding included",
        f"![Loss against tokens]({RUN}/loss.png)",
        "### hybrid-shift-128",
        "Trained on generated text",
        f'repo = "{MODEL}"',
        f"This is `{RUN}/best`",
    ):
        assert said in text
    assert card.data.to_dict()["library_name"] == "transformers" and DATASET in card.data.datasets
    assert f"{RUN}/eval-best/results.json" in files


@pytest.mark.parametrize(
    ("strategy", "task", "shown"),
    [
        ("baseline-causal", "text-generation", {"AutoModelForCausalLM", 'pipeline("text-generation"', "/qwen3"}),
        ("baseline-masked", "fill-mask", {"AutoModelForMaskedLM", 'pipeline("fill-mask"', "/qwen3-bidirectional"}),
    ],
)
def test_the_card_shows_what_the_strategy_trains(whole, tmp_path, strategy, task, shown):
    folder = tmp_path / f"{strategy}-64"
    folder.mkdir()
    for file in ("run.json", "metrics.jsonl", "finished.json"):
        shutil.copy(whole / file, folder)
    description = read_json(folder / "run.json")
    description["settings"] |= {"strategy": strategy, "dataset": "data/carolina"}  # a folder, though it looks otherwise
    (folder / "run.json").write_text(json.dumps(description))
    model_card.write(tmp_path, MODEL, folder.name)
    text = (tmp_path / "README.md").read_text()
    use = text.partition("## Use")[2].partition("`AutoModelForSequenceClassification`")[0]
    tools = {"AutoModelForCausalLM", "AutoModelForMaskedLM", 'pipeline("text-generation"', 'pipeline("fill-mask"'}
    assert {tool for tool in tools if tool in use} == shown & tools
    twins = {"/qwen3", "/qwen3-bidirectional"}
    assert {twin for twin in twins if f'subfolder="{folder.name}{twin}"' in text} == shown & twins
    assert ModelCard(text).data.pipeline_tag == task and not ModelCard(text).data.datasets
    assert f"This is `{folder.name}/best`" in text
    (folder / "finished.json").unlink()
    model_card.write(tmp_path, MODEL, "deleted-by-hand")
    text = (tmp_path / "README.md").read_text()
    assert f"{folder.name}/qwen3" not in text and "This is" not in text
    assert model_card.read_root(tmp_path / "README.md") == "deleted-by-hand"
    description["data"] |= {"corpus": "notícias", "generated": False}  # another corpus than Carolina
    (folder / "run.json").write_text(json.dumps(description))
    model_card.write(tmp_path, MODEL, folder.name)
    text = (tmp_path / "README.md").read_text().partition("## Citation")[0]
    assert "trained on `notícias`" in text and not ModelCard(text).data.language and "ortuguese" not in text
    description["data"] = None  # an older token store does not say
    (folder / "run.json").write_text(json.dumps(description))
    model_card.write(tmp_path, MODEL, folder.name)
    text = (tmp_path / "README.md").read_text().partition("## Citation")[0]
    assert "\nA FlexQwen: a Qwen3" in text and not ModelCard(text).data.language and "ortuguese" not in text


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_said_and_nothing_is_begun(
    hub, resumed, built, tokenizer_folder, place
):
    arguments = options(built, tokenizer_folder, place / "small-disk", push_to_hub=True, hub_model_id=MODEL)
    where = (hub.url, str(place / "one-home"), WRITE)
    assert run(arguments, place / "small-disk-log", largest_file=60_000, hub=where) == 2
    (error,) = (line for line in (place / "small-disk-log").read_text().splitlines() if line.startswith("error"))
    assert "holds files that could not be fetched to" in error and "File too large" in error
    assert not (place / "small-disk" / RUN).exists()


def test_a_dataset_gets_there_through_a_bad_network_and_a_bad_token_is_said(built, place, impatient, capsys):
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        connect(hub.url, str(place / "home"), "hf_wrongToken", patch)
        with pytest.raises(SystemExit):
            carolina_originality.main(["push", str(built), "--repo", DATASET])
        assert f"not all of {built} is on" in (error := capsys.readouterr().err) and "401: there is no token" in error
        connect(hub.url, str(place / "home"), WRITE, patch)
        hub.fail("PUT", "/large/", "cut", times=2)
        hub.fail("POST", "/commit/", 500, times=2)
        hub.fail("GET", "/api/datasets", 429, times=2)
        carolina_originality.main(["push", str(built), "--repo", DATASET])
        repo = hub.repos["dataset", DATASET]
    assert len(repo.commits) == 2 and list(repo.tags.values()) == [repo.branches["main"]]
    assert repo.files["manifest.json"] == (built / "manifest.json").read_bytes()


@pytest.fixture
def impatient(monkeypatch):
    """Tries again at once, and however busy the machine is."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(remote, "PATIENCE", 600)


class Saving:
    """As much of a Trainer as begins and saves."""

    def add_callback(self, callback):
        self.callback = callback

    def save(self):
        self.callback.on_train_begin()
        self.callback.on_save()


def contents(folder):
    return {path: file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("method", "path", "how"),
    [
        ("PUT", "/large/", "cut"),
        ("PUT", "/large/", 500),
        ("POST", "/commit/", "cut"),
        ("POST", "/commit/", 429),
        ("POST", "/preupload/", 500),
    ],
)
def test_what_fails_for_a_while_is_tried_again(whole, tokenizer_folder, place, impatient, method, path, how):
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        connect(hub.url, str(place / "home"), WRITE, patch)
        fault = hub.fail(method, path, how, times=3)
        with publishing.publishing(
            publishing.Publisher(Repository(MODEL), whole, tokenizer_folder), trainer := Saving()
        ):
            trainer.save()
        published = hub.repos["model", MODEL].files
    assert fault.times == 0 and f"{RUN}/finished.json" in published
    for file in whole.glob("*/*.safetensors"):
        assert published[f"{RUN}/{file.relative_to(whole)}"] == file.read_bytes()


def test_a_private_dataset_is_fetched_with_the_token_that_is_given_and_tried_again(
    hub, dataset, client, impatient, tmp_path, monkeypatch
):
    no_token(hub, monkeypatch, tmp_path)
    monkeypatch.setattr(dataset, "private", True)
    assert fetch_snapshot(DATASET, "dataset", ["manifest.json"]) == DATASET
    hub.fail("GET", "/api/datasets", 500, times=2)
    assert read_json(f"{fetch_snapshot(DATASET, 'dataset', ['manifest.json'], READ)}/manifest.json")["dataset"]
    hub.faults.clear()


def bad_token(hub, patch, tmp_path):
    patch.setenv("HF_TOKEN", "hf_wrongToken")


def no_token(hub, patch, tmp_path):
    patch.delenv("HF_TOKEN")
    patch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))


def reading_token(hub, patch, tmp_path):
    patch.setenv("HF_TOKEN", READ)


def broken_server(hub, patch, tmp_path):
    hub.fail("POST", "/api/repos/create", 500, times=1000)


def full_disk(hub, patch, tmp_path):
    def stage_file(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(publishing, "stage_file", stage_file)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (bad_token, "401: there is no token, or a wrong one"),
        (no_token, "401: there is no token, or a wrong one"),
        (reading_token, "403: the token may not write"),
        (broken_server, "500"),
        (full_disk, "No space left on device"),
    ],
)
def test_what_does_not_get_there_is_named_with_the_command_that_finishes_it(
    hub, client, whole, tokenizer_folder, impatient, tmp_path, capsys, trouble, reason
):
    repo_id, folder = f"org/{trouble.__name__}", tmp_path / "my runs" / RUN
    shutil.copytree(whole, folder)
    before = contents(folder)
    publisher = publishing.Publisher(Repository(repo_id, private=True), folder, tokenizer_folder)
    with pytest.MonkeyPatch.context() as patch:
        trouble(hub, patch, tmp_path)
        with pytest.raises(publishing.InputError) as caught, publishing.publishing(publisher, trainer := Saving()):
            trainer.save()  # training goes on
    hub.faults.clear()
    message = str(caught.value)
    assert "\n" not in message and reason in message and "step_000012, best" in message
    assert "this stops nothing" in capsys.readouterr().err
    assert contents(folder) == before and not list(folder.parent.glob("*partial"))
    if ("model", repo_id) in hub.repos:
        assert f"{RUN}/finished.json" not in hub.repos["model", repo_id].files
    publishing.main(shlex.split(message.split("python -m flexqwen publish ")[1]))
    assert hub.repos["model", repo_id].private and f"{RUN}/finished.json" in hub.repos["model", repo_id].files


@pytest.fixture
def unreachable(place, monkeypatch):
    """A Hub at a port where nothing listens; its messages do not depend on how long a try takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        connect(f"http://127.0.0.1:{free.getsockname()[1]}", str(place / "home"), WRITE, monkeypatch)
    return time.monotonic()


def test_an_unreachable_hub_is_said_within_seconds(built, unreachable, capsys):
    with pytest.raises(SystemExit):
        carolina_originality.main(["push", str(built), "--repo", DATASET])
    assert time.monotonic() - unreachable < 15
    assert "Connection refused" in (error := capsys.readouterr().err) and "the same command uploads" in error


def test_training_ends_when_it_ends_where_the_hub_cannot_be_reached(whole, tokenizer_folder, unreachable, capsys):
    publisher = publishing.Publisher(Repository(MODEL), whole, tokenizer_folder, "overwrite")
    publisher.prepare()
    assert not publisher.restore(read_json(whole / "run.json"), "new")
    with pytest.raises(publishing.InputError) as caught, publishing.publishing(publisher, trainer := Saving()):
        trainer.save()
        trained = time.monotonic()
    assert trained - unreachable < 10 and time.monotonic() - trained < 15
    assert "Connection refused" in str(caught.value) and f"--repo {MODEL} --overwrite" in str(caught.value)
    assert capsys.readouterr().err.count("this stops nothing") == 2


def test_a_run_there_with_other_settings_is_refused_or_replaced(whole, tokenizer_folder, place, tmp_path, capsys):
    folder = tmp_path / RUN
    shutil.copytree(whole, folder)
    (folder / "run.json").write_text(
        (whole / "run.json").read_text().replace('"learning_rate": 0.01', '"learning_rate": 0.5')
    )
    for file in ("step_000003", "best", "finished.json"):
        remove_path(folder / file)
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        connect(hub.url, str(place / "home"), WRITE, patch)
        publishing.main([str(whole), "--repo", MODEL])
        with pytest.raises(SystemExit):
            publishing.main([str(folder), "--repo", MODEL])
        assert "with other settings (learning_rate: 0.01 -> 0.5)" in capsys.readouterr().err
        before = hub.repos["model", MODEL].files
        publishing.main([str(folder), "--repo", MODEL, "--overwrite"])
        after, tags = hub.repos["model", MODEL].files, hub.repos["model", MODEL].tags
    gone = {path for path in before if re.match(rf"{RUN}/(step_000003|best|qwen3.*|finished.json)(/|$)", path)}
    assert before.keys() - after.keys() == gone | publishing.at_root(whole / "best").keys()
    assert "model.safetensors" not in after  # the root is no model before the new run has a best
    assert tags.keys() == {f"{run}step_0000{step}" for run in ("", f"{RUN}-") for step in ("06", "09", "12")}
    assert after[f"{RUN}/run.json"] == (folder / "run.json").read_bytes()


def test_a_run_that_goes_on_longer_is_no_finished_one(whole, tokenizer_folder, place, tmp_path):
    folder = shutil.copytree(whole, tmp_path / RUN)
    description = read_json(whole / "run.json")
    description["settings"]["max_steps"] = 24
    (folder / "run.json").write_text(json.dumps(description))
    (folder / "finished.json").unlink()
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        connect(hub.url, str(place / "home"), WRITE, patch)
        publishing.main([str(whole), "--repo", MODEL])
        assert f"{RUN}/finished.json" in hub.repos["model", MODEL].files
        publishing.Publisher(Repository(MODEL), folder, tokenizer_folder, "resume_changed").publish()
        assert f"{RUN}/finished.json" not in hub.repos["model", MODEL].files
        again = publishing.Publisher(Repository(MODEL), folder, tokenizer_folder, "resume_changed")
        again.prepare()
        assert not again.restore(description, "resume") and not (folder / "finished.json").exists()
        publishing.main([str(whole), "--repo", MODEL, "--resume_changed"])
        assert f"{RUN}/finished.json" in hub.repos["model", MODEL].files


def test_the_card_keeps_the_figures_of_the_weights_that_are_there(whole, place, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / RUN)
    value = {"one/best": 0.111, "two/best": 0.222, "more": 0.333}
    for name, accuracy in value.items():
        row = result([accuracy] * 2, task="multiblimp_por")
        weights = {"model.safetensors": file_digest(folder / "best" / "model.safetensors")}
        made_by = {"model": weights, "dataset_digest": "z", "measured": {}}
        write_results(tmp_path / name, {"model": "x/best", "made_by": made_by}, [row])
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        connect(hub.url, str(place / "home"), WRITE, patch)
        with pytest.raises(SystemExit):
            publishing.main([str(folder), "--repo", MODEL, "--results", *(str(tmp_path / name) for name in value)])
        assert "would both be published as eval-best; rename one of them" in capsys.readouterr().err
        results = [str(tmp_path / name) for name in ("one/best", "more")]
        publishing.main([str(folder), "--repo", MODEL, "--results", *results])
        publishing.main([str(folder), "--repo", MODEL])
        files = hub.repos["model", MODEL].files
        assert all(text in files["README.md"].decode() for text in ("0.111", "0.333"))
        shutil.copy(folder / "step_000003" / "model.safetensors", folder / "best")
        publishing.main([str(folder), "--repo", MODEL])
        files = hub.repos["model", MODEL].files
        assert not [name for name in files if name.startswith((f"{RUN}/eval-", ".eval_results/"))]
        assert "No evaluation has been published yet" in files["README.md"].decode()
        (folder / "run.json").write_text(
            (whole / "run.json").read_text().replace('"learning_rate": 0.01', '"learning_rate": 0.5')
        )
        publishing.main([str(folder), "--repo", MODEL, "--overwrite"])
        files = hub.repos["model", MODEL].files
    assert not [name for name in files if name.startswith((f"{RUN}/eval-", ".eval_results/"))]
    assert "No evaluation has been published yet" in files["README.md"].decode()


def take_weights(source, checkpoint):
    """Gives a checkpoint the weights of another, and its list their digest."""
    shutil.copy(source / "model.safetensors", checkpoint)
    listed = read_json(checkpoint / "files.json") | {"model.safetensors": file_digest(source / "model.safetensors")}
    (checkpoint / "files.json").write_text(json.dumps(listed))


def test_the_root_is_the_best_of_one_run_and_checkpoints_are_tags(whole, tokenizer_folder, place, tmp_path):
    other, third = (shutil.copytree(whole, tmp_path / name) for name in ("baseline-masked-64", "biphasic-64"))
    (other / "step_000012" / "model.safetensors").replace(other / "best" / "model.safetensors")
    take_weights(whole / "step_000009", other / "step_000012")
    description = read_json(whole / "run.json")
    description["settings"]["tokenizer"] = str(tmp_path / "gone")  # so that it is published with a checkpoint's copy
    (other / "run.json").write_text(json.dumps(description))
    (third / "best" / "modules.json").unlink()
    steps = [f"step_{step:06d}" for step in (3, 6, 9, 12)]
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        connect(hub.url, str(place / "home"), WRITE, patch)
        for run_folder in (whole, other):
            publishing.main([str(run_folder), "--repo", MODEL])
        repo = hub.repos["model", MODEL]

        def check_tags(runs, root):
            expected = {f"{run.name}-{step}": run / step for run in runs for step in steps}
            expected |= {step: root / step for step in steps}
            tagged = {tag: repo.commits[commit]["model.safetensors"].content for tag, commit in repo.tags.items()}
            assert tagged == {tag: (step / "model.safetensors").read_bytes() for tag, step in expected.items()}

        check_tags([whole, other], whole)
        assert repo.files["model.safetensors"] == (whole / "best" / "model.safetensors").read_bytes()
        assert "modules.json" in repo.files and "optimizer.pt" not in repo.files
        own = (tokenizer_folder / "tokenizer_config.json").read_bytes()
        assert repo.files["tokenizer_config.json"] == own != (other / "best" / "tokenizer_config.json").read_bytes()
        before = dict(repo.tags)
        files = dict(repo.commits[repo.branches["main"]])
        repo.commit("main", files | {"models/a/x.safetensors": files["README.md"]}, "by hand")
        publishing.main([str(other), "--repo", MODEL, "--root"])
        publishing.main([str(whole), "--repo", MODEL])
        assert f"This is `{other.name}/best`" in repo.files["README.md"].decode()
        assert repo.files["model.safetensors"] == (other / "best" / "model.safetensors").read_bytes()
        check_tags([whole, other], other)
        assert all(repo.tags[f"{RUN}-{step}"] == before[step] for step in steps)
        publishing.main([str(third), "--repo", MODEL, "--root"])
        assert "modules.json" not in repo.files and "models/a/x.safetensors" in repo.files
        check_tags([whole, other, third], third)
        take_weights(whole / "step_000003", third / "step_000012")
        before = dict(repo.tags)
        publishing.main([str(third), "--repo", MODEL])
        check_tags([whole, other, third], third)
        assert {tag for tag in before if before[tag] != repo.tags[tag]} == {"step_000012", f"{third.name}-step_000012"}


def test_a_branch_has_no_tags_and_leaves_those_of_main(whole, place, tmp_path):
    folder = shutil.copytree(whole, tmp_path / RUN)
    text = (whole / "run.json").read_text().replace('"learning_rate": 0.01', '"learning_rate": 0.5')
    (folder / "run.json").write_text(text)
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        connect(hub.url, str(place / "home"), WRITE, patch)
        publishing.main([str(whole), "--repo", MODEL])
        repo = hub.repos["model", MODEL]
        tags, main = dict(repo.tags), repo.branches["main"]
        publishing.main([str(folder), "--repo", MODEL, "--revision", "dev", "--overwrite"])
        publishing.main([str(folder.rename(tmp_path / "other-64")), "--repo", MODEL, "--revision", "dev", "--root"])
    assert repo.tags == tags != {} and repo.branches["main"] == main
    assert "This is `other-64/best`" in repo.commits[repo.branches["dev"]]["README.md"].content.decode()


def test_a_run_in_training_does_not_take_the_root_from_another(whole, tokenizer_folder, place, tmp_path):
    folder, other = (shutil.copytree(whole, tmp_path / name) for name in (RUN, "baseline-masked-64"))
    (folder / "finished.json").unlink()
    shutil.copy(whole / "step_000003" / "model.safetensors", other / "best")
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        connect(hub.url, str(place / "home"), WRITE, patch)
        publisher = publishing.Publisher(Repository(MODEL), folder, tokenizer_folder)
        publisher.publish()
        publishing.main([str(other), "--repo", MODEL, "--root"])
        shutil.copy(whole / "step_000006" / "model.safetensors", folder / "best")
        (folder / "metrics.jsonl").touch()
        publisher.publish()
        files = hub.repos["model", MODEL].files
    assert files["model.safetensors"] == (other / "best" / "model.safetensors").read_bytes()
    assert files[f"{RUN}/best/model.safetensors"] == (folder / "best" / "model.safetensors").read_bytes()
    assert "This is `baseline-masked-64/best`" in files["README.md"].decode()


def test_a_failed_look_at_the_repository_is_named_with_what_is_missing(hub, client, whole, tokenizer_folder, impatient):
    code = {file.name: file.read_bytes() for file in publishing.CODE}
    hub.new("model", "org/looked-at", code | {f"{RUN}/run.json": (whole / "run.json").read_bytes()})
    hub.fail("GET", f"looked-at/resolve/.*/{RUN}/run.json", 500, times=1000)
    publisher = publishing.Publisher(Repository("org/looked-at"), whole, tokenizer_folder)
    with pytest.raises(publishing.InputError, match=r"not on the Hub yet: card.*best.*python -m flexqwen publish"):
        publisher.finish()
    hub.faults.clear()


def test_a_damaged_run_on_the_hub_is_called_that(hub, client, whole, tokenizer_folder):
    code = {file.name: file.read_bytes() for file in publishing.CODE}
    hub.new("model", "org/damaged-run", code | {f"{RUN}/run.json": b"[1"})
    publisher = publishing.Publisher(Repository("org/damaged-run"), whole, tokenizer_folder)
    with pytest.raises(publishing.InputError, match=rf"holds a {RUN}/run\.json that is damaged .*; delete the folder"):
        publisher.finish()


def test_nothing_damaged_is_published(hub, client, whole, tokenizer_folder, tmp_path, capsys):
    folder = tmp_path / RUN
    shutil.copytree(whole, folder, symlinks=True)
    os.truncate(folder / "step_000012" / "optimizer.pt", 100)
    publishing.Publisher(Repository("org/half"), folder, tokenizer_folder).finish()
    said = f"hub: {RUN}/step_000012 is not published: optimizer.pt is not as it was saved"
    assert said in capsys.readouterr().err.splitlines()
    there = hub.repos["model", "org/half"].files
    assert f"{RUN}/step_000009/optimizer.pt" in there and not any("step_000012" in file for file in there)
    os.truncate(folder / "best" / "model.safetensors", 3000)
    with pytest.raises(publishing.InputError, match=r"not on the Hub yet: .*best, .*model\.safetensors is damaged"):
        publishing.Publisher(Repository("org/none"), folder, tokenizer_folder).finish()
    assert not any("best" in file for file in hub.repos["model", "org/none"].files)


def test_an_outtype_is_of_gguf(capsys):
    with pytest.raises(SystemExit):
        export_main(["model", "exported", "--outtype", "f32"])
    assert "--outtype is of GGUF" in capsys.readouterr().err


def test_a_mistyped_folder_is_called_that():
    with pytest.raises(
        publishing.InputError,
        match=r"^runs/one/best is no folder here, and the Hub cannot have it \(names there are <user or .*>/<name>\)$",
    ):
        loading.load(AutoConfig, "runs/one/best")


def test_a_hub_that_cannot_be_reached_is_said_at_once(hub, tmp_path, monkeypatch, capsys):
    """The client would try each file of a model for half a minute."""
    files = {"config.json": b'{"model_type": "bert"}'}
    hub.new("model", "org/kept", files)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hybrid").mkdir()
    connect(hub.url, str(tmp_path / "cache"), WRITE, monkeypatch)
    assert loading.load(AutoConfig, "org/kept").model_type == "bert"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(SystemExit):
        evaluation.main(["--model", "hybird"])
    assert "hybird is no folder here, and the Hub cannot be reached; did you mean 'hybrid'?" in capsys.readouterr().err
    with pytest.raises(publishing.InputError, match=r"^org/other is no folder here, and the Hub cannot be reached$"):
        check(parse(["--model_name_or_path", "org/other", "--use_cpu", "true"]))
    assert loading.load(AutoConfig, "org/kept").model_type == "bert"  # from the cache
    assert time.monotonic() - start < 20


def test_nothing_of_the_user_s_own_settings_of_the_hub_is_left():
    assert os.environ["HF_HOME"] == constants.HF_HOME and "flexqwen-tests-" in constants.HF_HOME
    assert not constants.HF_HUB_OFFLINE and constants.HF_HUB_DISABLE_XET


def test_a_run_whose_token_is_wrong_is_trained_all_the_same(hub, built, tokenizer_folder, whole, place):
    arguments = options(built, tokenizer_folder, place / "wrong", push_to_hub=True, hub_model_id="org/never")
    assert run([*arguments, "--hub_token=hf_wrongToken"], place / "wrong-log", hub=(hub.url, str(place), READ)) == 2
    assert same_weights(place / "wrong" / RUN / "step_000012", whole / "step_000012")
    printed = (place / "wrong-log").read_text()
    last = printed.splitlines()[-1]
    assert printed.count("this stops nothing") == 2  # said before any work, and once when publishing began
    assert last.startswith("error: not on the Hub yet: card, code and records, step_000003")
    assert "python -m flexqwen publish" in last


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hub_model_id": "org/someone"}, "org/someone holds something else (notes.txt, …), which is not overwritten"),
        ({"hub_model_id": MODEL, "learning_rate": 0.02}, "with other settings (learning_rate: 0.01 -> 0.02)"),
        ({"hub_model_id": "nowhere"}, "'nowhere' names no repository of the Hub"),
        ({"hub_strategy": "end"}, "push_to_hub needs --hub_model_id"),
    ],
)
def test_a_repository_of_something_else_stops_the_run_before_any_work(
    hub, built, tokenizer_folder, place, resumed, changes, message
):
    if ("model", "org/someone") not in hub.repos:
        hub.new("model", "org/someone", {"notes.txt": b"mine"})
    commits = {key: len(repo.commits) for key, repo in hub.repos.items()}
    arguments = options(built, tokenizer_folder, place / "refused", push_to_hub=True, **changes)
    log = place / "refused-log"
    log.unlink(missing_ok=True)
    assert run(arguments, log, hub=(hub.url, str(place / "one-home"), WRITE)) == 2
    (error,) = log.read_text().splitlines()
    assert error.startswith("error: ") and message in error
    assert {key: len(repo.commits) for key, repo in hub.repos.items()} == commits
    assert not (place / "refused" / RUN).exists()


@pytest.mark.parametrize(
    ("file", "message"), [("run.json", "learning_rate: 0.5 -> 0.01"), ("notes.txt", "is not empty and holds no run")]
)
def test_nothing_is_fetched_over_another_run_or_other_files(
    hub, resumed, whole, built, tokenizer_folder, tmp_path, file, message
):
    folder = tmp_path / "runs" / RUN
    shutil.copytree(whole, folder)
    (folder / "run.json").rename(folder / file)
    text = (folder / file).read_text().replace('"learning_rate": 0.01', '"learning_rate": 0.5')
    (folder / file).write_text(text)
    (folder / "finished.json").unlink()
    before = contents(folder)
    arguments = options(built, tokenizer_folder, folder.parent, push_to_hub=True, hub_model_id=MODEL)
    assert run(arguments, tmp_path / "log", hub=(hub.url, str(tmp_path / "home"), WRITE)) == 2
    assert message in (tmp_path / "log").read_text() and contents(folder) == before


def test_what_the_repository_has_not_stays_where_its_checkpoint_is_fetched(
    hub, client, resumed, whole, tokenizer_folder, tmp_path
):
    folder = tmp_path / RUN
    shutil.copytree(whole, folder)
    for file in ("step_000012", "best", "finished.json"):
        remove_path(folder / file)
    (folder / "eval-mine").mkdir()
    (folder / "eval-mine" / "notes.txt").write_text("mine")
    left, used = (tmp_path / f"{RUN}.hub.{pid}.partial" for pid in (2**22 + 1, os.getppid()))  # no such pid; one alive
    left.mkdir()
    used.mkdir()
    mine = contents(folder / "step_000009") | contents(folder / "eval-mine")
    publisher = publishing.Publisher(Repository(MODEL), folder, tokenizer_folder)
    publisher.prepare()
    assert publisher.restore(read_json(whole / "run.json"), "resume")
    assert same_weights(folder / "step_000012", whole / "step_000012") and (folder / "finished.json").is_file()
    assert contents(folder / "step_000009") | contents(folder / "eval-mine") == mine
    assert used.exists() and not left.exists()


def test_a_damaged_checkpoint_is_not_restored(hub, client, whole, tmp_path):
    files = {name: (whole / name).read_bytes() for name in ("run.json", "metrics.jsonl")}
    for step in ("step_000003", "step_000006"):
        files |= {f"{step}/{file.name}": file.read_bytes() for file in (whole / step).iterdir() if file.is_file()}
        files[f"{step}/1_Pooling/config.json"] = (whole / step / "1_Pooling" / "config.json").read_bytes()
        del files[f"{step}/training_args.bin"]
    code = {file.name: file.read_bytes() for file in publishing.CODE}
    hub.new("model", "org/damaged", code | {f"{RUN}/{name}": content for name, content in files.items()})
    description, repository = read_json(whole / "run.json"), Repository("org/damaged")
    for state in ("new", "resume"):
        folder = tmp_path / state / RUN
        if state == "resume":
            shutil.copytree(whole, folder)
            for file in ("step_000012", "step_000009", "finished.json"):
                remove_path(folder / file)
            os.truncate(folder / "step_000006" / "optimizer.pt", 10)  # the repository's is whole
        assert restore(repository, folder, description, state)
        assert same_weights(folder / "step_000006", whole / "step_000006")
        assert last_checkpoint(folder) == folder / "step_000006"
    files["step_000006/optimizer.pt"] = b"PK"
    hub.new("model", "org/damaged", code | {f"{RUN}/{name}": content for name, content in files.items()})
    with pytest.raises(publishing.InputError, match=r"optimizer\.pt is not as it was saved.* delete that folder there"):
        restore(repository, tmp_path / RUN, description, "new")
    assert not (tmp_path / RUN).exists()


def test_a_branch_that_is_not_there_yet_is_looked_at_as_main(hub, client, resumed, whole, tokenizer_folder, tmp_path):
    description = read_json(whole / "run.json")
    other = description | {"settings": description["settings"] | {"learning_rate": 0.5}}
    repository = Repository(MODEL, revision="branch")
    restore_tokenizer(repository, tokenizer_folder)
    with pytest.raises(publishing.InputError, match="with other settings"):
        compare(repository, tmp_path / RUN, other, "")
    assert restore(repository, tmp_path / RUN, description, "new")
    assert same_weights(tmp_path / RUN / "step_000012", whole / "step_000012")
    assert "branch" not in hub.repos["model", MODEL].branches
    if ("model", "org/someone") not in hub.repos:
        hub.new("model", "org/someone", {"notes.txt": b"mine"})
    with pytest.raises(publishing.InputError, match="holds something else"):
        restore_tokenizer(Repository("org/someone", revision="new"), tokenizer_folder)


def test_a_training_that_does_not_begin_publishes_nothing(hub, client, whole, tokenizer_folder):
    publisher = publishing.Publisher(Repository("org/not-begun"), whole, tokenizer_folder, "overwrite")
    publisher.prepare()
    with pytest.raises(RuntimeError, match="no schedule"), publishing.publishing(publisher, Saving()):
        raise RuntimeError("no schedule")  # the run's folder is still that of an earlier run
    assert ("model", "org/not-begun") not in hub.repos


def test_publish_names_what_changed_while_it_was_looked_at(hub, client, whole, tokenizer_folder, monkeypatch, capsys):
    stage_file = publishing.stage_file

    def stage_what_is_there(file, staged, as_link):
        if file.match("best/*.safetensors"):
            raise FileNotFoundError(file)
        stage_file(file, staged, as_link)

    monkeypatch.setattr(publishing, "stage_file", stage_what_is_there)
    with pytest.raises(SystemExit) as stopped:
        publishing.main([str(whole), "--repo", "org/changing"])
    assert stopped.value.code == 2 and "not on the Hub yet: best" in capsys.readouterr().err
    assert f"{RUN}/step_000012/model.safetensors" in hub.repos["model", "org/changing"].files


def test_no_token_is_written_anywhere(hub, resumed, place):
    """Runs last: it looks at what the tests above left in `place`, logs of runs among it, and on their common Hub."""
    secrets = [token.encode() for token in (WRITE, READ, "hf_wrongToken")]
    written = {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for (_, name), repo in hub.repos.items():
        for commit, files in repo.commits.items():
            written |= {f"{name}@{commit}/{path}": file.content for path, file in files.items()}
    assert len(written) > 200
    assert not [path for path, content in written.items() if any(secret in content for secret in secrets)]
    assert b'"hub_token": "<HUB_TOKEN>"' in written[str(place / "one" / RUN / "run.json")]
