"""SQuAD's exact match and F1 of answers, with Portuguese articles: in FaQuAD, the best over a question's answers."""

import re
import unicodedata
from collections import Counter

import datasets
import evaluate
import numpy as np

ARTICLES = re.compile(r"\b(?:os?|as?|uns|umas?|um)\b")


def normalize_answer(text: str) -> str:
    """Lower case, no punctuation (any of Unicode's), no articles (o, a, os, as, um, uma, uns, umas), single spaces.

    Contractions of an article with a preposition (do, na, à) stay.
    """
    kept = "".join(character for character in text.lower() if unicodedata.category(character)[0] != "P")
    return " ".join(ARTICLES.sub(" ", kept).split())


def exact_match(answer: str, predicted: str) -> float:
    """1 where both are the same text, normalised. An empty prediction is wrong."""
    said = normalize_answer(predicted)
    return float(said != "" and said == normalize_answer(answer))


def token_f1(answer: str, predicted: str) -> float:
    """F1 of the two bags of words, normalised. An empty prediction is wrong."""
    true, said = normalize_answer(answer).split(), normalize_answer(predicted).split()
    common = sum((Counter(true) & Counter(said)).values())
    return 2 * common / (len(true) + len(said)) if common else 0.0


METRICS = {"exact_match": exact_match, "f1": token_f1}


def score_answers(metric: str, answers, predicted) -> np.ndarray:
    """The metric of each question, float64 `(questions,)`: the best over its answers."""
    pairs = zip(answers, predicted, strict=True)
    return np.array([max(METRICS[metric](answer, said) for answer in given) for given, said in pairs])


class SquadPt(evaluate.Metric):
    """predictions: an answer to each question. references: the right answers to each."""

    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
        return evaluate.MetricInfo(__doc__, "", features, self.__doc__)

    def _compute(self, predictions, references):
        return {metric: float(score_answers(metric, references, predictions).mean()) for metric in METRICS}
