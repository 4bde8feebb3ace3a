"""benchmarks/peers.py without a checkout: another model is scored as a FlexQwen is, and the figures are right."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from flexqwen.evaluation import heldout
from flexqwen.evaluation.likelihood import Scorer
from flexqwen.training import trainer
from tests.helpers.runs import CONFIG
from tests.helpers.tiny import BOS, EOS, VOCABULARY, make_model

spec = importlib.util.spec_from_file_location("peers", Path(__file__).parents[1] / "benchmarks" / "peers.py")
peers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peers)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token a letter, after the special ones."""
    names = ["<pad>", "<s>", "</s>", "<mask>"]
    vocabulary = {name: number for number, name in enumerate([*names, *" abcd"])}
    backend = Tokenizer(BPE(vocabulary, []))
    backend.add_special_tokens(names)
    special = dict(zip(("pad_token", "bos_token", "eos_token", "mask_token"), names, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **special)


def wrapped(model, unseen: int = -1):
    def encode(input_ids, real, is_causal):
        return model.model(input_ids=input_ids, attention_mask=real.long(), is_causal=is_causal).last_hidden_state

    return peers.Peer(model, encode, model.lm_head, VOCABULARY, 32, unseen=unseen)


@pytest.mark.parametrize("mode", heldout.MODES)
def test_a_wrapped_model_has_the_scores_of_its_own(mode):
    rng = np.random.default_rng(0)
    documents = [[BOS, *rng.integers(4, VOCABULARY, size).tolist(), EOS] for size in (30, 9, 20)]
    tokenizer = make_tokenizer()
    text = heldout.HeldOut.of(documents, [60, 20, 40], 16, tokenizer)
    models = wrapped(make_model()), make_model()
    assert np.allclose(*(heldout.score(model, text, mode) for model in models), rtol=1e-5)
    texts = ["abc abd", "b", "ca dab cab"]
    assert np.allclose(*(Scorer(model, tokenizer, "flexqwen").score(texts, mode) for model in models), rtol=1e-5)


def test_a_token_that_a_system_does_not_know_is_hidden_from_it():
    seen = []
    peer = wrapped(make_model(), unseen=EOS)
    encode, peer.encode = peer.encode, lambda ids, real, is_causal: (seen.append(real), encode(ids, real, is_causal))[1]
    peer(torch.tensor([[BOS, 7, 8, EOS]]))
    assert seen[0].tolist() == [[True, True, True, False]]


def test_scoring_leaves_a_model_in_training():
    recorder = peers.Recorder.__new__(peers.Recorder)
    recorder.tokenizer, recorder.clock, recorder.curve, recorder.pairs = make_tokenizer(), peers.Clock(), [], []
    recorder.text = heldout.tokenize_texts(["abc abd", "ca dab cab"], recorder.tokenizer, 8)
    model = wrapped(make_model()).train()
    recorder.record(model, 0)
    assert model.training
    assert model.model.training  # else dropout would end with the first point of the curve
    assert {"tokens", *peers.METRICS[:2]} < recorder.curve[0].keys()


@pytest.mark.parametrize("is_causal", [True, False])
def test_attention_on_a_cpu_is_that_of_flex_attention(is_causal):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 6, 16)
    documents = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 1, 1]])

    def may_look(b, h, q, k):
        return q >= k if is_causal else torch.ones_like(q, dtype=torch.bool)

    def of_one_document(score, b, h, q, k):
        return torch.where(documents[b, q] == documents[b, k], score, -float("inf"))

    mask = create_block_mask(may_look, None, None, 6, 6, device="cpu")
    wanted = flex_attention(query, key, value, block_mask=mask, score_mod=of_one_document)
    found = peers.attention_on_cpu(query, key, value, may_look, of_one_document)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("fraction", [0, 1 / 64, 0.75, 15 / 16, 1])
def test_masked_rows_have_their_share(fraction):
    counts, owed = [], 0.0
    for _ in range(64):
        count, owed = peers.masked_rows(8, fraction, owed)
        counts.append(count)
    assert sum(counts) == 64 * 8 * fraction
    assert min(counts) >= 0
    assert max(counts) <= 8


def curve(*values: float) -> list[dict]:
    return [
        {"seconds": 10.0 * n, "tokens": 100 * n, "bits_per_byte_causal": value, "pairs_causal": 0.5}
        for n, value in enumerate(values)
    ]


def test_figures_of_two_curves():
    ours, theirs = curve(8, 4, 2), curve(8, 6, 3)
    theirs[-1]["tokens"] = 150
    assert peers.at(ours, "seconds", 15, "bits_per_byte_causal") == 3
    assert peers.seconds_to_reach(ours, "bits_per_byte_causal", 3) == 15
    assert peers.seconds_to_reach(ours, "bits_per_byte_causal", 1) is None
    found = peers.compare(*([{"curve": one}] * 2 for one in (ours, curve(8, 1), theirs)), 20)["bits_per_byte_causal"]
    assert found["equal_time"]["mean"] == -1
    assert found["equal_tokens"]["mean"] == 0  # at 150 tokens both have 3
    assert found["half_time"]["differences"] == [-2, -2]
    assert found["share_of_its_time"] == [0.75, 0.75]


def test_interval_over_seeds_is_students():
    found = peers.with_interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2
    assert found["interval"] == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5])
    assert peers.with_interval([1.0])["interval"] is None


def test_each_side_trains_at_its_best_rate(monkeypatch):
    def run(args, side, seed, rate, minutes, documents):
        loss = abs(rate - {"ours": 2, "stock": 0.125}[side])
        cell = {"side": side, "seed": seed, "rate": rate, "minutes": minutes}
        return {"cell": cell, "curve": [{"bits_per_byte_causal": loss}]}

    monkeypatch.setattr(peers, "run", run)
    args = SimpleNamespace(workers=2, sweep_minutes=1, minutes=2, sides=["ours", "stock"], seeds=2)
    runs, sweep = peers.run_all(args, {})
    assert sorted(sweep["stock"]) == [0.0625, 0.125, 0.25, 0.5, 1.0, 2.0]  # beyond 0.5, as far as it gets better
    for key, side, rate, minutes in (("ours", "ours", 2, 2), ("stock", "stock", 0.125, 2), ("half", "ours", 2, 1)):
        wanted = {"side": side, "rate": rate, "minutes": minutes}
        assert [one["cell"] for one in runs[key]] == [wanted | {"seed": seed} for seed in range(2)]


def test_as_many_steps_as_fit_are_trained():
    def run(max_steps, recorder):
        recorder.curve.append(max_steps)
        return SimpleNamespace(times=[9 + step if step < 5 else 20 + step / 2 for step in range(max_steps)]), "model"

    recorder = SimpleNamespace(curve=[])
    assert peers.run_for(100, run, recorder) == "model"
    assert recorder.curve == [200]  # half a second each, but for the first; the steps that told are not in the curve


def test_a_mark_is_no_part_of_the_time_of_a_step(monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr(peers.time, "process_time", lambda: next(seconds))
    recorder = object.__new__(peers.Recorder)
    recorder.clock, recorder.curve = peers.Clock(), []

    def record(model, tokens):
        with recorder.clock.paused():
            for _ in range(10):
                next(seconds)

    recorder.record = recorder.record_if_due = record
    marks = peers.Marks(recorder, lambda step: step)
    for step in range(1, 4):
        marks.on_step_end(None, SimpleNamespace(global_step=step, max_steps=3), None)
    assert np.diff(marks.times).max() < 10


def test_a_finished_run_is_not_run_again(monkeypatch, tmp_path):
    started = []

    def start(command, **kwargs):
        assert kwargs["env"]["PYTHONPATH"] == str(peers.ROOT)
        started.append(json.loads(command[-1]))
        peers.write_json(Path(started[-1]["scratch"]) / "result.json", {"curve": []})
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(peers.subprocess, "run", start)
    names = dict.fromkeys(("dataset_config", "config", "dataset", "tokenizer", "recipe"), "x")
    args = SimpleNamespace(**names, documents=1, limit=0, marks=2, bf16=False, runs=str(tmp_path))
    first = peers.run(args, "ours", 0, 1.0, 5, {"folder": "x"})
    assert peers.run(args, "ours", 0, 1.0, 5, {"folder": "x"}) == first
    assert len(started) == 1
    args.recipe = "--muon false"
    peers.run(args, "ours", 0, 1.0, 5, {"folder": "x"})
    assert len(started) == 2


@pytest.mark.parametrize("side", ["ours", "stock"])
def test_a_side_that_needs_no_checkout_runs(side, built, tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "FlexQwenTrainer", trainer.FlexQwenTrainer)  # what it sets is undone
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**CONFIG, "output_dir": str(tmp_path)}))
    sizes = {"documents": 4, "limit": 0, "marks": 2, "minutes": 0.02, "rate": 1.0, "seed": 0}
    places = {"dataset": str(built), "dataset_config": "gold", "tokenizer": str(tokenizer_folder)}
    places |= {"config": str(tmp_path / "tiny.yaml"), "scratch": str(tmp_path / "scratch")}
    documents = peers.write_documents(SimpleNamespace(**places, runs=tmp_path))
    recipe = "--muon true --causal_fraction 0.75" if side == "ours" else ""
    cell = {"side": side, "recipe": recipe, "bf16": False, "documents_folder": documents["folder"]}
    found = peers.train_one({**cell, **places, **sizes})
    first, last = found["curve"][0], found["curve"][-1]
    assert last["tokens"] > first["tokens"] == 0
    for mode in heldout.MODES if side == "ours" else ["causal"]:
        assert last[f"bits_per_byte_{mode}"] < first[f"bits_per_byte_{mode}"]
