"""minicons: its scores of sentences, causal and masked, are ours."""

import numpy as np
import pytest

from flexqwen.evaluation.likelihood import Scorer
from modeling_flexqwen import FlexQwenForCausalLM, FlexQwenForMaskedLM

minicons = pytest.importorskip("minicons.scorer")
CLIENTS = ("minicons",)


@pytest.mark.parametrize("mode", ["causal", "masked"])
def test_scores_of_sentences_are_ours(checkpoint, tokenizer, sample_documents, mode):
    texts = list(dict.fromkeys(" ".join(document.text.split()[:12]) for document in sample_documents))[:50]
    ours = Scorer(FlexQwenForCausalLM.from_pretrained(checkpoint), tokenizer, "flexqwen").score(texts, mode)
    if mode == "causal":
        theirs = minicons.IncrementalLMScorer(
            FlexQwenForCausalLM.from_pretrained(checkpoint), "cpu", tokenizer=tokenizer
        )
    else:
        theirs = minicons.MaskedLMScorer(FlexQwenForMaskedLM.from_pretrained(checkpoint), "cpu", tokenizer=tokenizer)
    # For a masked model minicons 0.3 itself calls what transformers 5 no longer has. From here on the tokenizer pads,
    # which our scores, if they came later, would not know.
    batch = texts if mode == "causal" else tokenizer(texts, padding=True)
    expected = theirs.sequence_score(batch, reduction=lambda scores: scores.sum().item())
    assert len(texts) == 50
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
