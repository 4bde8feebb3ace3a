"""Similarity by embeddings: the mean of the hidden states, whatever stands beside a sentence in its batch."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from flexqwen.evaluation.likelihood import Request, Scorer
from flexqwen.evaluation.statistics import mean_interval
from flexqwen.evaluation.tasks import Context, Item, load_task
from flexqwen.evaluation.tasks.assin2 import embed, influences
from tests.helpers.tiny import make_model

PAIRS = [
    ("O Brasil é grande.", "O Brasil é um país grande.", 4.5),
    ("Choveu.", "A menina leu o livro que estava sobre a mesa.", 1.0),
    ("Um homem corre.", "Um homem está a correr na rua.", 3.8),
    ("Um cão dorme.", "Não há cão que durma.", 2.9),
]


@pytest.fixture
def scorer(tokenizer):
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")}
    return Scorer(make_model(vocab_size=len(tokenizer), **ids), tokenizer, "flexqwen")


@pytest.mark.parametrize("mode", ["causal", "masked"])
def test_pearson_is_that_of_the_cosines_of_mean_hidden_states(scorer, tokenizer, mode):
    items = [
        Item(f"{number}", "", [[Request(one), Request(other)]], label=label)
        for number, (one, other, label) in enumerate(PAIRS)
    ]
    (result,) = load_task("assin2_embeddings").evaluate(scorer, items, mode, Context())
    cosines = []
    for *pair, _ in PAIRS:
        vectors = []
        for text in pair:
            with torch.no_grad():
                states = scorer.model.model(**tokenizer(text, return_tensors="pt"), is_causal=mode == "causal")[0]
            vectors.append(states[0].mean(0))
            np.testing.assert_allclose(embed(scorer, [text], mode == "causal")[0], vectors[-1], rtol=1e-4, atol=1e-5)
        cosines.append(torch.cosine_similarity(*vectors, dim=0).item())
    expected = pearsonr(cosines, [label for *_, label in PAIRS]).statistic
    assert result.value == pytest.approx(expected, abs=1e-5) and result.n == 4
    assert result.interval[0] <= result.value <= result.interval[1]


def test_there_is_no_fused_embedding(scorer):
    assert load_task("assin2_embeddings").evaluate(scorer, [], "fused", Context()) == []


@pytest.mark.parametrize("r", [0.0, 0.8])
def test_the_interval_is_as_wide_as_pearson_s(r):
    """Known answer: for normal values its standard error is (1 - r²) / √n."""
    one, noise = np.random.default_rng(0).normal(size=(2, 2000))
    other = r * one + (1 - r**2) ** 0.5 * noise
    items, found = influences(one, 3 * other + 7), pearsonr(one, other).statistic
    assert items.mean() == pytest.approx(found)
    low, high = mean_interval(items)
    assert high - low == pytest.approx(2 * 1.96 * (1 - found**2) / 2000**0.5, rel=0.1)
    assert influences(one, np.ones(2000)).tolist() == [0] * 2000  # a constant has none
