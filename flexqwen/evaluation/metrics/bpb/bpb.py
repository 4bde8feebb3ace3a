"""Bits per byte: how well a model predicts text, comparable between tokenizers."""

import math

import datasets
import evaluate
import numpy as np


def bits_per_byte(nats, sizes) -> np.ndarray:
    """Bits per byte of each text, float64: negative log-likelihoods in nats over sizes in UTF-8 bytes.

    The figure of several texts is the mean of theirs weighted by size: all bits over all bytes.
    """
    return np.asarray(nats, dtype=np.float64) / math.log(2) / np.asarray(sizes)


class BitsPerByte(evaluate.Metric):
    """predictions: negative log-likelihood of each text, in nats. references: the texts."""

    def _info(self):
        nats, text = datasets.Value("float64"), datasets.Value("string")
        features = datasets.Features({"predictions": nats, "references": text})
        return evaluate.MetricInfo(__doc__, "", features, self.__doc__)

    def _compute(self, predictions, references):
        sizes = [len(text.encode()) for text in references]
        return {"bits_per_byte": float(np.average(bits_per_byte(predictions, sizes), weights=sizes))}
