"""Sentences scored per second: flexqwen.likelihood, a plain loop, minicons, and lm-evaluation-harness, in one run.

    python benchmarks/eval_throughput.py [--model <checkpoint>] [--sentences 400] [--repeats 3] [--output result.json]

The plain loop takes one sentence at a time: one forward pass (masked: one for each masked copy; "copies as a batch":
one for all copies of the sentence), all logits, their log-softmax. minicons scores a batch of sentences at a time
(masked: of 8); the harness runs its `hf` model with its own batches. Each is left out where it is not installed (`pip
install minicons lm-eval`). All sides take turns, in one process, with the same threads; each side's best time counts,
and their scores must agree. Speeds are by the clock and, after the comma, by the time of all processors together, which
other programs disturb less. Without --model, a model of random weights in quickstart's shape is timed. The sentences
are drawn from all that the zero-shot tasks minimal_pairs, wsc_pt and mpararel_pt score.
"""

import argparse
import copy
import json
import random
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from flexqwen.cli import InputError
from flexqwen.evaluation import likelihood
from flexqwen.evaluation.likelihood import Scorer
from flexqwen.evaluation.tasks import Context, load_task
from flexqwen.files import versions, write_json
from modeling_flexqwen import FlexQwenForCausalLM, FlexQwenForMaskedLM

TASKS = ("minimal_pairs", "wsc_pt", "mpararel_pt")
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 256,
}


@torch.inference_mode()
def plain(scorer: Scorer, sentences: list[str], masked: bool, copies_at_a_time: int = 1) -> np.ndarray:
    """One sentence at a time."""
    scores = []
    for sentence in sentences:
        ids = scorer.tokenizer(sentence, return_tensors="pt").input_ids
        if masked:
            places = torch.arange(1, ids.shape[1])
            copies = ids.repeat(len(places), 1)
            copies[places - 1, places] = scorer.tokenizer.mask_token_id
            score = 0.0
            for part in range(0, len(places), copies_at_a_time):
                place = places[part : part + copies_at_a_time]
                logits = scorer.model(copies[place - 1], is_causal=False).logits
                log_probabilities = logits.log_softmax(-1)
                score += log_probabilities[torch.arange(len(place)), place - 1, ids[0, place]].sum().item()
            scores.append(score)
        else:
            log_probabilities = scorer.model(ids).logits.log_softmax(-1)
            scores.append(log_probabilities[0, :-1].gather(-1, ids[0, 1:, None]).sum().item())
    return np.array(scores)


def harness(scorer: Scorer, batch_size: int):
    """lm-evaluation-harness's `hf` model of the same weights, as a function of sentences; None if not installed."""
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        return None
    model = HFLM(
        pretrained=scorer.model, tokenizer=scorer.tokenizer, batch_size=batch_size, device=str(scorer.model.device)
    )

    def score(sentences: list[str]) -> np.ndarray:
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=("", sentence), idx=number)
            for number, sentence in enumerate(sentences)
        ]
        return np.array([value for value, _ in model.loglikelihood(requests, disable_tqdm=True)])

    return score


def minicons(scorer: Scorer, batch_size: int, masked_batch_size: int = 8) -> list:
    """minicons' causal and masked scoring of the same weights, as functions of sentences; none if not installed."""
    try:
        from minicons.scorer import IncrementalLMScorer, MaskedLMScorer
    except ImportError:
        return []
    device, tokenizer = str(scorer.model.device), copy.deepcopy(scorer.tokenizer)
    tokenizer.cls_token, tokenizer.sep_token = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.padding_side = "right"  # the harness has set it to the left
    # minicons 0.3.39 calls it so, transformers 5 does not.
    type(tokenizer).batch_encode_plus = type(tokenizer).__call__
    aligned = FlexQwenForMaskedLM(scorer.model.config).to(scorer.model.device)
    aligned.load_state_dict(scorer.model.state_dict())

    def score(model, size: int, sentences: list[str]) -> np.ndarray:
        parts = [sentences[start : start + size] for start in range(0, len(sentences), size)]
        return np.array([s for part in parts for s in model.sequence_score(part, reduction=lambda x: x.sum(0).item())])

    causal = IncrementalLMScorer(scorer.model, device, tokenizer=tokenizer)
    masked = MaskedLMScorer(aligned, device, tokenizer=tokenizer)
    return [partial(score, causal, batch_size), partial(score, masked, masked_batch_size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a FlexQwen checkpoint")
    parser.add_argument("--tokenizer", help="its folder, where there is no --model")
    parser.add_argument("--sentences", type=int, default=400)
    parser.add_argument("--masked_sentences", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=64, help="of the harness")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        scorer = likelihood.load(args.model) if args.model else random_model(args.tokenizer)
        sentences = requested()
    except InputError as error:
        sys.exit(f"error: {error}")
    random.Random(0).shuffle(sentences)
    sides = {
        "flexqwen": lambda texts: scorer.score(texts, "causal"),
        "plain loop": lambda texts: plain(scorer, texts, False),
    }
    if lm_eval := harness(scorer, args.batch_size):
        sides["lm-evaluation-harness"] = lm_eval
    masked_sides = {
        "flexqwen": lambda texts: scorer.score(texts, "masked"),
        "plain loop": lambda texts: plain(scorer, texts, True),
        "copies as a batch": lambda texts: plain(scorer, texts, True, copies_at_a_time=10_000),
    }
    for mode_sides, side in zip((sides, masked_sides), minicons(scorer, args.batch_size), strict=False):
        mode_sides["minicons"] = side
    result = {"threads": torch.get_num_threads(), "device": str(scorer.model.device), "repeats": args.repeats}
    for mode, those, count in (("causal", sides, args.sentences), ("masked", masked_sides, args.masked_sentences)):
        texts = sentences[:count]
        result[mode] = measure(scorer, those, texts, args.repeats) | {"sentences": len(texts)}
    result["versions"] = versions("torch", "transformers", "lm_eval", "minicons")
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)


def requested() -> list[str]:
    """The sentences that the tasks score."""
    items = [item for name in TASKS for item in load_task(name).load_items(Context())]
    return [option.text for item in items for question in item.questions for option in question]


def random_model(tokenizer_folder: str | None) -> Scorer:
    from configuration_flexqwen import FlexQwenConfig

    if not tokenizer_folder:
        raise InputError("pass --model, or --tokenizer for a model of random weights")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    torch.manual_seed(0)
    model = FlexQwenForCausalLM(FlexQwenConfig(vocab_size=len(tokenizer), **special, **SHAPE)).eval()
    return Scorer(model, tokenizer, "flexqwen")


def measure(scorer: Scorer, sides: dict, texts: list[str], repeats: int) -> dict[str, float]:
    """Sentences per second of each side (by the clock, by processor time); how many times the others' flexqwen's."""
    best, scores = {name: np.full(2, np.inf) for name in sides}, {}
    for side in sides.values():
        side(texts[:8])
    for _ in range(repeats):
        for name, side in sides.items():
            scorer.run.cache_clear()
            start = np.array([time.perf_counter(), time.process_time()])
            scores[name] = side(texts)
            best[name] = np.minimum(best[name], [time.perf_counter(), time.process_time()] - start)
    for name, values in scores.items():
        np.testing.assert_allclose(values, scores["flexqwen"], atol=2e-3, err_msg=name)
    speed = {name: len(texts) / seconds for name, seconds in best.items()}
    ratios = {f"times {name}": speed["flexqwen"] / value for name, value in speed.items() if name != "flexqwen"}
    return {name: value.round(2).tolist() for name, value in (speed | ratios).items()}


if __name__ == "__main__":
    main()
