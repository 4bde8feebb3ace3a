"""lm-evaluation-harness with a model class more, `--model flexqwen`: masked and fused scores, which it has not.

    pip install lm-eval
    python -m flexqwen.evaluation.harness run --model flexqwen --model_args pretrained=<checkpoint>,mode=fused --tasks …

It scores a FlexQwen, or any causal or masked model of transformers, as `eval.py` does (see likelihood.py).
"""

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from flexqwen.cli import InputError, command
from flexqwen.evaluation.likelihood import Request, load


@register_model("flexqwen")
class ScoredLM(LM):
    """A checkpoint, in a folder or on the Hub, as the harness wants it.

    `mode` is "causal", "masked" (pseudo-log-likelihood) or "fused", by default the last that the model has;
    `within_word` masks all tokens of a word together; `batch_size` is in tokens, padding included. `others` are what
    the harness tells every model, which is decided elsewhere here.
    """

    def __init__(
        self, pretrained: str, mode: str = "", within_word=False, batch_size="", trust_remote_code=False, **others
    ):
        super().__init__()
        tokens = int(batch_size) if str(batch_size).isdecimal() and int(batch_size) > 1 else None
        self.scorer = load(pretrained, tokens, bool(trust_remote_code))
        self.mode, self.within_word = mode or self.scorer.modes[-1], bool(within_word)
        if self.mode not in self.scorer.modes:
            raise InputError(f"mode is {mode!r}; this model has: {', '.join(self.scorer.modes)}")

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = (request.args for request in requests)
        asked = tuple(Request(context + continuation, len(context)) for context, continuation in pairs)
        progress = None if disable_tqdm else "lm_eval"
        nats, masked = self.scorer.score(asked, self.mode, self.within_word, progress), self.mode == "masked"
        _, greedy = self.scorer.run(asked, masked, masked and self.within_word, progress, None)  # which is kept
        return list(zip(nats.tolist(), greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        return self.scorer.score([request.args[0] for request in requests], self.mode, self.within_word).tolist()

    def generate_until(self, requests, disable_tqdm: bool = False):
        raise InputError("--model flexqwen scores and does not write; use --model hf")


@command
def main(argv: list[str] | None = None) -> None:
    """The harness's own command line."""
    cli_evaluate()


if __name__ == "__main__":
    main()
