"""F1 of named entities by CoNLL's rules: an entity is right where its words and its class are."""

import datasets
import evaluate
import numpy as np
from seqeval.metrics.sequence_labeling import get_entities


def count_entities(gold, predicted) -> np.ndarray:
    """Entities of each text, int64 `(texts, 3)`: right, predicted, gold. Texts are lists of B, I, O labels."""
    counts = []
    for gold_labels, labels in zip(gold, predicted, strict=True):
        true, said = set(get_entities(gold_labels)), set(get_entities(labels))
        counts.append((len(true & said), len(said), len(true)))
    return np.array(counts)


def entity_f1(counts: np.ndarray) -> float:
    """Micro F1 of such counts: seqeval's of the same texts, but quick enough for a bootstrap. 0 without entities."""
    right, predicted, gold = counts.sum(0)
    return float(2 * right / max(predicted + gold, 1))


class EntityF1(evaluate.Metric):
    """predictions, references: the labels of each text's words, such as B-LOCAL, I-LOCAL, O."""

    def _info(self):
        labels = datasets.Sequence(datasets.Value("string"))
        features = datasets.Features({"predictions": labels, "references": labels})
        return evaluate.MetricInfo(__doc__, "", features, self.__doc__)

    def _compute(self, predictions, references):
        counts = count_entities(references, predictions)
        right, predicted, gold = (int(number) for number in counts.sum(0))
        precision, recall = right / max(predicted, 1), right / max(gold, 1)
        return {"f1": entity_f1(counts), "precision": precision, "recall": recall, "entities": gold}
