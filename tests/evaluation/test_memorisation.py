"""What a model has memorised, of models and texts of which it is known."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flexqwen.cli import InputError
from flexqwen.data.packing import describe_rows, encode_documents, find_folder
from flexqwen.data.texts import dataset_digest
from flexqwen.evaluation.tasks import Context, load_task, memorisation
from flexqwen.evaluation.tasks.memorisation import NEW, PROMPT, TrainingTexts, match_sizes, sample_continuations
from tests.helpers.finetuned import WORDS
from tests.helpers.tiny import make_model

TASK = load_task("memorisation")


def write_texts(count: int, seed: int, begin: list[str] | None = None) -> list[str]:
    """Texts of random words, of 80 words and more; each begins as one of `begin` does."""
    source = random.Random(seed)
    made = [" ".join(source.choice(WORDS) + source.choice("abcde") for _ in range(80 + n)) for n in range(count)]
    return [f"{first} {text}" for first, text in zip(begin, made, strict=True)] if begin else made


def make_run(folder: Path, trained: list[str], heldout: list[str], **settings) -> str:
    """A dataset of these texts and the run.json of a run on it; returns the folder of the run's checkpoint."""
    for config, split, texts in (("gold", "train", trained), ("heldout", "test", heldout)):
        path = folder / f"dataset/data/{config}/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"id": [f"{config}{n}" for n in range(len(texts))], "text": texts}), path)
    (folder / "dataset/manifest.json").write_text("{}")
    settings = {"dataset_config": "gold", "sequence_length": 128, "seed": 0, "token_stores": str(folder)} | settings
    digests = {"dataset": dataset_digest(folder / "dataset"), "tokenizer": "t"}
    (folder / "run.json").write_text(json.dumps({"settings": settings, "digests": digests}))
    return str(folder / "best")


def make_scorer(tokenizer, model) -> SimpleNamespace:
    return SimpleNamespace(
        model=model, tokenizer=tokenizer, prefix=[tokenizer.bos_token_id], length=128, batch_tokens=None
    )


class Parrot:
    """A model that goes on as the known document does that begins as the prompt."""

    device = "cpu"

    def __init__(self, tokenizer, texts):
        self.known, self.size = list(encode_documents(tokenizer, texts)), len(tokenizer)

    def __call__(self, input_ids, past_key_values, use_cache, logits_to_keep):
        seen = input_ids if past_key_values is None else torch.cat([past_key_values, input_ids], 1)
        logits = torch.zeros(len(seen), 1, self.size)
        for row, begin in enumerate(seen.tolist()):
            document = next(ids for ids in self.known if ids[: len(begin)] == begin)
            logits[row, 0, document[len(begin)]] = 100
        return SimpleNamespace(logits=logits, past_key_values=seen)


@pytest.mark.parametrize(("begins_alike", "copied", "own"), [(8, 1.0, 0.0), (88, 1.0, 1.0)])
def test_a_model_that_repeats_its_training_text_is_found_out(
    begins_alike, copied, own, tokenizer, tmp_path, monkeypatch
):
    trained = write_texts(8, 0)
    heldout = write_texts(8, 1, [" ".join(text.split()[:begins_alike]) for text in trained])
    context = Context(str(tmp_path / "dataset"), model=make_run(tmp_path, trained, heldout))
    parrot = make_scorer(tokenizer, Parrot(tokenizer, trained))
    nats = iter((1.0, 3.0))  # for each byte, of the training documents and then of the held-out ones
    monkeypatch.setattr(memorisation, "score", lambda model, rows, *_, **__: next(nats) * np.log(2) * rows.bytes)
    partners = [0, 0, 2, 3, 4, 5, 6, 7]  # one training document is beside two of the held-out ones
    monkeypatch.setattr(memorisation, "match_sizes", lambda sizes, among: partners)
    gap, found = TASK.evaluate(parrot, TASK.load_items(context), "causal", context)
    assert (gap.metric, gap.value, gap.interval) == ("gap_bits_per_byte", pytest.approx(2), pytest.approx([2, 2]))
    assert len(set(gap.clusters)) == len(set(partners)) < 8 and found.clusters is None
    assert (found.metric, found.value, found.baseline, found.n) == ("copied_7grams", copied, own, 8)


def test_a_model_that_knows_nothing_copies_nothing(tokenizer, tmp_path):
    checkpoint = make_run(tmp_path, write_texts(8, 0), write_texts(8, 1))
    context = Context(str(tmp_path / "dataset"), model=checkpoint)
    scorer = make_scorer(tokenizer, make_model(vocab_size=len(tokenizer)))
    causal, masked = (TASK.evaluate(scorer, TASK.load_items(context), mode, context) for mode in ("causal", "masked"))
    assert [result.metric for result in (*causal, *masked)] == [
        "gap_bits_per_byte",
        "copied_7grams",
        "gap_bits_per_byte",
    ]
    assert causal[1].value == causal[1].baseline == 0
    assert abs(causal[0].value) < 1 and causal[0].value != masked[0].value


def test_draws_follow_the_model_and_depend_on_the_name_alone(tokenizer, monkeypatch):
    model = make_model(vocab_size=len(tokenizer))
    scorer = make_scorer(tokenizer, model)
    prompts = np.array([[1, *range(4 + n, 4 + n + PROMPT)] for n in range(3)])
    written = sample_continuations(scorer, prompts, ["a", "b", "c"])
    assert written.shape == (3, NEW) and not np.isin(written, tokenizer.all_special_ids).any()
    monkeypatch.setattr(memorisation, "BATCH", 1)
    assert np.array_equal(sample_continuations(scorer, prompts[[2, 0]], ["c", "a"]), written[[2, 0]])
    assert not np.array_equal(sample_continuations(scorer, prompts[:1], ["other"])[0], written[0])
    with torch.no_grad():
        model.lm_head.weight *= 1e4  # one token has all the probability
        written = sample_continuations(scorer, prompts, ["a", "b", "c"])
        logits = model(torch.from_numpy(np.concatenate([prompts, written], 1))).logits[:, PROMPT:-1]
        logits[..., tokenizer.all_special_ids] = -torch.inf
    assert (logits.argmax(-1).numpy() == written).mean() > 0.95


def test_the_documents_of_the_run_are_those_of_its_token_store(tmp_path):
    checkpoint = make_run(tmp_path, write_texts(5, 0), [], unique_tokens=100)
    dataset = str(tmp_path / "dataset")
    with pytest.raises(InputError, match=r"no .*documents\.txt, which names the documents of .*best"):
        TrainingTexts(checkpoint, dataset)
    store = find_folder(str(tmp_path), describe_rows(dataset_digest(dataset), "gold", "t", 128, 100, 0))
    store.mkdir()
    (store / "documents.txt").write_text("gold3\ngold1\n")
    trained, texts = TrainingTexts(checkpoint, dataset), write_texts(5, 0)
    assert list(trained) == [texts[1], texts[3]] and trained.pick([1, 0, 1]) == [texts[3], texts[1], texts[3]]
    (tmp_path / "dataset/manifest.json").write_text('{"other": 1}')
    with pytest.raises(InputError, match="best was not trained on"):
        TrainingTexts(checkpoint, dataset)
    (tmp_path / "run.json").unlink()
    with pytest.raises(InputError, match=r"no .*run\.json, which says what .*best was trained on"):
        TrainingTexts(checkpoint, dataset)


def test_documents_are_paired_by_size():
    assert match_sizes([1, 12, 14, 99], [30, 10, 20, 15]) == [1, 1, 3, 0]
    assert match_sizes([5], [7]) == [0]
