"""Which mode each row gets, what is masked in it, and what is predicted.

Everything about a training row is a function of the run's seed and of the row's number in training order, so that the
same batches come out with any number of workers and processes and after a restart.
"""

import bisect
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.hf_argparser import HfArg

from flexqwen.cli import InputError
from flexqwen.data.packing import IGNORE, position_ids
from flexqwen.training.schedule import Phase

STRATEGIES = {
    "baseline-causal": "every row causal",
    "baseline-masked": "every row masked",
    "hybrid-shift": "causal and masked rows in every step; masks predicted one position earlier (GPT-BERT)",
    "hybrid-inplace": "causal and masked rows in every step; masks predicted in place (BERT)",
    "biphasic": "causal steps first, then masked ones (arXiv 2507.00994)",
    "alternating": "passes over the data, causal and masked in turn (arXiv 2412.03275)",
}


@dataclass
class ObjectiveArguments:
    """The objective: a strategy and a few numbers. The defaults are GPT-BERT's (arXiv 2410.24159)."""

    strategy: str = HfArg(
        default="hybrid-shift", help="; ".join(f"{name}: {text}" for name, text in STRATEGIES.items())
    )
    causal_fraction: float = HfArg(
        default=0.5, help="share of causal rows (hybrid) or of causal steps, which come first (biphasic)"
    )
    mask_probability_start: float = HfArg(
        default=0.3, help="share of a masked row's tokens that is masked at the first step"
    )
    mask_probability_end: float = HfArg(default=0.15, help="the same at the last step; linear in between")
    mask_schedule: str = HfArg(
        default="linear",
        help="linear: from mask_probability_start to mask_probability_end; uniform: a share drawn from (0, 1) "
        "for each row, which with loss_weighting row is masked diffusion's loss (arXiv 2512.14549)",
    )
    causal_mask_probability: float = HfArg(
        default=0.0, help="share of a causal row's input tokens that is masked, labels unchanged (arXiv 2606.06888)"
    )
    mask_span_max: int = HfArg(default=3, help="masked spans are of 1 to this many tokens, uniformly")
    mask_replace: float = HfArg(default=0.8, help="share of masked spans that the mask token replaces")
    mask_random: float = HfArg(
        default=0.1, help="share of masked spans replaced by random tokens; the rest is kept as it is"
    )
    loss_weighting: str = HfArg(
        default="row",
        help="row: every row counts the same, whatever its mode, as in GPT-BERT, where a GPU averages over its "
        "own predicted tokens; token: every predicted token counts the same",
    )

    def __post_init__(self):
        choices = {"strategy": STRATEGIES, "loss_weighting": ("row", "token"), "mask_schedule": ("linear", "uniform")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.mask_span_max < 1:
            raise InputError(f"mask_span_max is {self.mask_span_max}; it must be at least 1")
        for name, value in vars(self).items():
            if isinstance(value, float) and not 0 <= value <= 1:
                raise InputError(f"{name} is {value}; it must lie between 0 and 1")
        if (total := self.mask_replace + self.mask_random) > 1:
            raise InputError(f"mask_replace + mask_random is {total}; it must be at most 1")

    @property
    def masked_prediction(self) -> str:
        """Where the model predicts a masked token: `FlexQwenConfig.masked_prediction`."""
        return "in_place" if self.strategy == "hybrid-inplace" else "next_token"

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that are trained."""
        fixed = {"baseline-causal": 1, "baseline-masked": 0, "alternating": 0.5}
        share = fixed.get(self.strategy, self.causal_fraction)
        return {1: ("causal",), 0: ("masked",)}.get(share, ("causal", "masked"))

    def mask_probability(self, progress: float, rng: np.random.Generator) -> float:
        """Share of a row's tokens that is masked when `progress` (0 to 1) of the training is done."""
        if self.mask_schedule == "uniform":
            return rng.random()
        return self.mask_probability_start + (self.mask_probability_end - self.mask_probability_start) * progress


def trained_modes(settings: dict) -> tuple[str, ...]:
    """The modes that a run with these settings trains."""
    return ObjectiveArguments(settings["strategy"], settings["causal_fraction"]).modes


def mask_spans(input_ids, probability, rng, objective: ObjectiveArguments, special_ids, mask_token_id, vocab_size):
    """Masks spans of one row, as GPT-BERT does: each span is masked with the given probability, as a whole.

    Gives the masked row and its labels (the original token where masked, -100 elsewhere), int64 `(sequence,)` each.
    `special_ids` are never masked and never drawn as random replacements.
    """
    length = len(input_ids)
    spans = np.repeat(np.arange(length), rng.integers(1, objective.mask_span_max + 1, size=length))[:length]
    masked = (rng.random(length) < probability)[spans] & ~np.isin(input_ids, special_ids)
    fate = rng.random(length)[spans]
    random_tokens = rng.integers(0, vocab_size - len(special_ids), size=length)
    for special in sorted(special_ids):  # step over them: the rest of the vocabulary, uniformly
        random_tokens += random_tokens >= special
    inputs = np.where(masked & (fate < objective.mask_replace), mask_token_id, input_ids)
    is_random = (fate >= objective.mask_replace) & (fate < objective.mask_replace + objective.mask_random)
    inputs = np.where(masked & is_random, random_tokens, inputs)
    return inputs, np.where(masked, input_ids, IGNORE)


class TrainingRows(Dataset):
    """Every row that a run trains on, in training order.

    Item k belongs to one step, and to one pass over its phase's data; each pass is shuffled anew.
    """

    def __init__(self, phases: list[Phase], objective: ObjectiveArguments, seed: int):
        self.phases, self.objective, self.seed = phases, objective, seed
        self.max_steps = phases[-1].steps.stop
        sizes = [len(phase.steps) * phase.rows_per_step for phase in phases]
        self.ends = np.cumsum(sizes).tolist()
        self.starts = [end - size for end, size in zip(self.ends, sizes, strict=True)]
        self.special_ids = [phases[0].rows.info[f"{name}_token_id"] for name in ("bos", "eos", "pad", "mask")]
        self._shuffled: tuple[tuple[int, int], np.ndarray] = ((-1, -1), np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return self.ends[-1]

    def place(self, item: int) -> tuple[Phase, int, int, int]:
        """Where item k stands: its phase, its step, its slot in the step, and its number in the phase."""
        number = bisect.bisect_right(self.ends, item)
        phase, in_phase = self.phases[number], item - self.starts[number]
        step, slot = divmod(in_phase, phase.rows_per_step)
        return phase, phase.steps.start + step, slot, in_phase

    def row_number(self, item: int) -> int:
        """Which row of its phase's packed rows item k is."""
        phase, _, _, in_phase = self.place(item)
        epoch, place = divmod(in_phase, len(phase.rows))
        key = (epoch, item - in_phase)
        if self._shuffled[0] != key:
            rng = np.random.default_rng([self.seed, 0, *key])
            self._shuffled = (key, rng.permutation(len(phase.rows)))
        return int(self._shuffled[1][place])

    def is_causal(self, item: int) -> bool:
        """The mode of item k. Hybrid steps hold the same number of causal rows, give or take one, spread evenly."""
        phase, step, slot, in_phase = self.place(item)
        strategy, fraction = self.objective.strategy, self.objective.causal_fraction
        if strategy == "baseline-causal":
            return True
        if strategy == "baseline-masked":
            return False
        if strategy == "biphasic":
            return step < round(fraction * self.max_steps)
        if strategy == "alternating":
            return (in_phase // len(phase.rows)) % 2 == 0
        offset = np.random.default_rng([self.seed, 1, step]).random()
        return int((slot + 1) * fraction + offset) > int(slot * fraction + offset)

    def __getitem__(self, item: int) -> dict:
        phase, step, _, _ = self.place(item)
        info = phase.rows.info
        input_ids = phase.rows.input_ids[self.row_number(item)].astype(np.int64)
        positions = position_ids(input_ids, info["bos_token_id"], info["pad_token_id"])
        is_causal, rng = self.is_causal(item), np.random.default_rng([self.seed, 2, item])
        if is_causal:
            never = [info["bos_token_id"], info["pad_token_id"]]
            labels = np.where(np.isin(input_ids, never), IGNORE, input_ids)
            if share := self.objective.causal_mask_probability:
                hidden = (rng.random(len(input_ids)) < share) & ~np.isin(input_ids, self.special_ids)
                input_ids = np.where(hidden, info["mask_token_id"], input_ids)
        else:
            share = self.objective.mask_probability(step / max(1, self.max_steps - 1), rng)
            ids = self.special_ids, info["mask_token_id"], info["vocab_size"]
            input_ids, labels = mask_spans(input_ids, share, rng, self.objective, *ids)
        return {"input_ids": input_ids, "position_ids": positions, "labels": labels, "is_causal": is_causal}


def collate(items: list[dict], masked_prediction: str = "next_token") -> dict:
    """Stacks rows, causal ones first, so that variable-length attention takes each mode at once.

    Returns int64 tensors `(batch, sequence)`, `is_causal` (bool `(batch,)`), and what depends on data only and would
    make a GPU wait: `segments` and `target_positions`, as `FlexQwenForCausalLM.forward` takes them.
    """
    from modeling_flexqwen import document_numbers, find_labels, packed_segments  # seconds, which options do not need

    items = sorted(items, key=lambda item: not item["is_causal"])
    batch = {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]}
    shift = batch["is_causal"] | (masked_prediction == "next_token")
    batch["target_positions"] = find_labels(batch["labels"], shift)
    batch["segments"] = packed_segments(document_numbers(batch["position_ids"]), batch["is_causal"])
    return batch
