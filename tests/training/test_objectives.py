"""Modes, masks and labels of training rows: what they are, and that they are a function of seed and place alone."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from flexqwen.cli import InputError
from flexqwen.data.packing import IGNORE
from flexqwen.training.objectives import STRATEGIES, ObjectiveArguments, TrainingRows, collate, mask_spans
from flexqwen.training.schedule import Phase, StepBatches

PAD, BOS, EOS, MASK = range(4)
VOCABULARY = 500
LENGTH = 64


class Rows:
    """Packed rows of random documents, in memory."""

    def __init__(self, number=40):
        rng = np.random.default_rng(0)
        self.input_ids = rng.integers(4, VOCABULARY, size=(number, LENGTH)).astype(np.uint16)
        self.input_ids[:, [0, 20, 45]] = BOS
        self.input_ids[:, [19, 44, 60]] = EOS
        self.input_ids[:, 61:] = PAD
        self.info = {
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "mask_token_id": MASK,
            "vocab_size": VOCABULARY,
        }

    def __len__(self):
        return len(self.input_ids)


def training_rows(strategy="hybrid-shift", seed=0, max_steps=20, rows_per_step=8, **changes):
    phases = [Phase(Rows(), range(max_steps), rows_per_step)]
    return TrainingRows(phases, ObjectiveArguments(strategy=strategy, **changes), seed)


def modes(rows):
    return np.array([rows.is_causal(item) for item in range(len(rows))]).reshape(rows.max_steps, -1)


def test_each_pass_over_the_data_holds_every_row_once_in_a_new_order():
    rows = training_rows()
    numbers = [rows.row_number(item) for item in range(120)]
    for start in (0, 40, 80):
        assert sorted(numbers[start : start + 40]) == list(range(40))
    assert numbers[:40] != numbers[40:80]


def test_modes_of_each_strategy():
    assert modes(training_rows("baseline-causal")).all()
    assert not modes(training_rows("baseline-masked")).any()
    biphasic = modes(training_rows("biphasic", causal_fraction=0.25))
    assert biphasic[:5].all() and not biphasic[5:].any()
    alternating = modes(training_rows("alternating"))
    assert alternating[:5].all() and not alternating[5:10].any() and alternating[10:15].all()


@pytest.mark.parametrize("fraction", [0.0, 1 / 8, 0.3, 0.5, 0.75, 1.0])
def test_every_hybrid_step_has_its_share_of_causal_rows(fraction):
    causal = modes(training_rows("hybrid-shift", causal_fraction=fraction, max_steps=500)).sum(1)
    assert set(causal) <= {int(8 * fraction), int(np.ceil(8 * fraction))}
    assert causal.mean() == pytest.approx(8 * fraction, abs=0.15)


def test_a_causal_row_predicts_every_token_but_bos_and_padding():
    rows = training_rows("baseline-causal")
    for item in range(10):
        row, stored = rows[item], rows.phases[0].rows.input_ids[rows.row_number(item)]
        assert (row["input_ids"] == stored).all()
        for place in range(LENGTH):
            expected = IGNORE if stored[place] in (BOS, PAD) else stored[place]
            assert row["labels"][place] == expected


def test_a_masked_row_predicts_the_original_of_what_it_masks_and_nothing_else():
    rows = training_rows("baseline-masked")
    for item in range(40):
        row, stored = rows[item], rows.phases[0].rows.input_ids[rows.row_number(item)].astype(np.int64)
        labelled = row["labels"] != IGNORE
        assert (row["labels"][labelled] == stored[labelled]).all()
        assert (row["input_ids"][~labelled] == stored[~labelled]).all()
        assert not (labelled & (stored < 4)).any()


def masked_sample(probability, **changes):
    """One very long row, masked: labels' places, and how each was replaced."""
    objective = replace(ObjectiveArguments(), **changes)
    ids = np.random.default_rng(1).integers(4, VOCABULARY, size=400_000)
    inputs, labels = mask_spans(ids, probability, np.random.default_rng(2), objective, [0, 1, 2, 3], MASK, VOCABULARY)
    return ids, inputs, labels != IGNORE


@pytest.mark.parametrize("probability", [0.15, 0.3])
def test_mask_rate_and_80_10_10(probability):
    ids, inputs, masked = masked_sample(probability)
    assert masked.mean() == pytest.approx(probability, abs=0.005)  # about 3.5 standard errors
    replaced, kept = inputs[masked] == MASK, inputs[masked] == ids[masked]
    assert replaced.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1 + 0.1 / VOCABULARY, abs=0.01)
    assert inputs[masked].max() < VOCABULARY and not np.isin(inputs[masked], [PAD, BOS, EOS]).any()


def test_spans_are_of_one_to_three_tokens_uniformly():
    # Few enough spans that two of them seldom touch; a lone run of masks is then one span.
    _, _, masked = masked_sample(0.01)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], masked.astype(int), [0]])))
    lengths = edges[1::2] - edges[::2]
    shares = np.bincount(lengths, minlength=8)[1:] / len(lengths)
    assert shares[:3] == pytest.approx([1 / 3] * 3, abs=0.04)
    assert shares[3:].sum() < 0.03
    _, _, single = masked_sample(0.01, mask_span_max=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], single.astype(int), [0]])))
    assert (edges[1::2] - edges[::2] == 1).mean() > 0.98


def test_the_mask_rate_falls_linearly_over_training():
    rows = training_rows("baseline-masked", max_steps=300, rows_per_step=16)
    rates = np.array(
        [
            np.mean([(rows[step * 16 + slot]["labels"] != IGNORE).sum() / 55 for slot in range(16)])
            for step in range(0, 300, 10)
        ]
    )
    slope, start = np.polyfit(np.arange(0, 300, 10) / 299, rates, 1)
    assert start == pytest.approx(0.3, abs=0.03)
    assert start + slope == pytest.approx(0.15, abs=0.03)


def test_a_uniform_mask_schedule_draws_a_rate_for_each_row():
    rows = training_rows("baseline-masked", max_steps=100, rows_per_step=16, mask_schedule="uniform", mask_span_max=1)
    rates = np.array([(rows[item]["labels"] != IGNORE).sum() / 55 for item in range(1600)])
    assert np.quantile(rates, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.06)
    assert abs(np.corrcoef(np.arange(1600), rates)[0, 1]) < 0.1


def test_causal_inputs_can_be_masked_with_their_labels_unchanged():
    plain, masked = (
        training_rows("baseline-causal", max_steps=50, causal_mask_probability=share) for share in (0.0, 0.25)
    )
    hidden = total = 0
    for item in range(len(plain)):
        one, other = plain[item], masked[item]
        assert one["is_causal"] and (one["labels"] == other["labels"]).all()
        changed = one["input_ids"] != other["input_ids"]
        assert (other["input_ids"][changed] == MASK).all() and not np.isin(one["input_ids"][changed], [PAD, BOS]).any()
        hidden, total = hidden + changed.sum(), total + (one["input_ids"] > 3).sum()
    assert hidden / total == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_is_a_function_of_seed_and_place_whatever_the_workers(strategy):
    def batches(workers, seed=0):
        rows = training_rows(strategy, seed=seed)
        return list(torch.utils.data.DataLoader(rows, batch_size=8, collate_fn=collate, num_workers=workers))

    alone, other = batches(0), batches(0, seed=1)
    for workers in (1, 2):
        for one, two in zip(alone, batches(workers), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert not all(torch.equal(one["labels"], two["labels"]) for one, two in zip(alone, other, strict=True))
    late = training_rows(strategy)[100]  # asked for first, as after a restart
    batch = alone[12]
    (place,) = (batch["input_ids"] == torch.as_tensor(late["input_ids"])).all(-1).nonzero()
    assert all(torch.equal(batch[name][place][0], torch.as_tensor(late[name])) for name in late)


def test_batches_hold_causal_rows_first():
    rows = training_rows("hybrid-shift")
    batch = collate([rows[item] for item in range(8)])
    assert batch["is_causal"].tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "hybrid"}, "hybrid-shift, hybrid-inplace"),
        ({"causal_fraction": 1.5}, "causal_fraction is 1.5"),
        ({"mask_replace": 0.9, "mask_random": 0.2}, "at most 1"),
        ({"mask_span_max": 0}, "at least 1"),
        ({"loss_weighting": "sum"}, "row, token"),
    ],
)
def test_objectives_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=message):
        ObjectiveArguments(**changes)


def test_batches_of_a_step_are_the_same_rows_however_they_are_dealt():
    phases = [Phase(Rows(), range(0, 3), 8), Phase(Rows(), range(3, 5), 16)]
    dealt = {parts: list(StepBatches(phases, parts)) for parts in (1, 2, 4)}
    for parts, batches in dealt.items():
        assert len(batches) == len(StepBatches(phases, parts)) == 5 * parts
        for step in range(5):
            step_of_it = list(itertools.chain(*batches[step * parts : (step + 1) * parts]))
            assert step_of_it == dealt[1][step] and len(step_of_it) == (8 if step < 3 else 16)
    whole = TrainingRows(phases, ObjectiveArguments(), 0)
    assert list(itertools.chain(*dealt[1])) == list(range(len(whole)))


def test_steps_modes_and_mask_rates_run_on_over_phases():
    phases = [Phase(Rows(), range(0, 10), 8), Phase(Rows(), range(10, 20), 16)]
    rows = TrainingRows(phases, ObjectiveArguments(strategy="biphasic", causal_fraction=0.75), seed=0)
    assert [rows.place(item)[1] for item in (0, 79, 80, 239)] == [0, 9, 10, 19]
    assert all(rows.is_causal(item) for item in range(160)) and not any(
        rows.is_causal(item) for item in range(160, 240)
    )
    first, second = ([rows.row_number(item) for item in range(start, start + 40)] for start in (0, 80))
    assert sorted(first) == sorted(second) == list(range(40)) and first != second


def test_every_pass_over_the_data_is_masked_anew():
    rows = training_rows("baseline-masked", max_steps=10)
    seen = {}
    for item in range(80):
        seen.setdefault(rows.row_number(item), []).append(rows[item]["labels"])
    assert all(len(labels) == 2 and not np.array_equal(*labels) for labels in seen.values())


def test_a_span_has_one_fate():
    rng = np.random.default_rng(0)
    objective = ObjectiveArguments(mask_span_max=3, mask_replace=0.5, mask_random=0.0)
    ids = rng.integers(4, VOCABULARY, size=20_000)
    inputs, labels = mask_spans(ids, 0.05, rng, objective, [PAD, BOS, EOS, MASK], MASK, VOCABULARY)
    masked, replaced = labels != IGNORE, inputs == MASK
    neighbours = masked[1:] & masked[:-1]
    # Two spans seldom touch at this rate: nearly all neighbours are of one span, and share what became of it.
    assert (replaced[1:] == replaced[:-1])[neighbours].mean() > 0.9
    assert 0.4 < replaced[masked].mean() < 0.6


def test_masked_prediction_of_each_strategy():
    expected = {name: "in_place" if name == "hybrid-inplace" else "next_token" for name in STRATEGIES}
    assert {name: ObjectiveArguments(strategy=name).masked_prediction for name in STRATEGIES} == expected
