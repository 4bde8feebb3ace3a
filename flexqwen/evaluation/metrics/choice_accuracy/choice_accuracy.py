"""Accuracy of choices by score, as between the two sentences of a minimal pair; a tie shares the point."""

import datasets
import evaluate
import numpy as np

TIE = 1e-4
"""Scores that differ by no more are equal: nats, the precision to which scores are known."""


def score_choice(scores, right: int = 0, tie: float = TIE) -> tuple[float, bool]:
    """What choosing the highest score is worth, and whether there was a tie.

    1 if the right one is highest, 0 if not; k equal highest scores share the point, so that a model that cannot tell
    them apart is at chance.
    """
    scores = np.asarray(scores, dtype=np.float64)
    best = scores >= scores.max() - tie
    return float(best[right]) / best.sum(), bool(best.sum() > 1)


class ChoiceAccuracy(evaluate.Metric):
    """predictions: the scores of each item's choices. references: the right one's number."""

    def _info(self):
        scores, right = datasets.Sequence(datasets.Value("float64")), datasets.Value("int64")
        features = datasets.Features({"predictions": scores, "references": right})
        return evaluate.MetricInfo(__doc__, "", features, self.__doc__)

    def _compute(self, predictions, references, tie=TIE):
        choices = [score_choice(scores, right, tie) for scores, right in zip(predictions, references, strict=True)]
        return {"accuracy": float(np.mean([points for points, _ in choices])), "ties": sum(t for _, t in choices)}
