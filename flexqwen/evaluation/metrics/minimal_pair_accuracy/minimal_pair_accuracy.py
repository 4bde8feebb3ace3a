"""Accuracy of choices by score, as between the two sentences of a minimal pair; a tie shares the point."""

import datasets
import evaluate
import numpy as np

TIE = 1e-4
"""Scores that differ by no more are equal: nats, the precision to which scores are known."""


def credit(scores, right: int = 0, tie: float = TIE) -> tuple[float, bool]:
    """What choosing the highest score is worth, and whether there was a tie.

    1 if the right one is highest, 0 if not; k equal highest scores share the point, so that a model that cannot tell
    them apart is at chance.
    """
    scores = np.asarray(scores, dtype=np.float64)
    best = scores >= scores.max() - tie
    return float(best[right]) / best.sum(), bool(best.sum() > 1)


class MinimalPairAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions: the scores of each item's choices. references: the right one's number.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, tie=TIE):
        credits = [credit(scores, right, tie) for scores, right in zip(predictions, references, strict=True)]
        return {"accuracy": float(np.mean([points for points, _ in credits])), "ties": sum(t for _, t in credits)}
