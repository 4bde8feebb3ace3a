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
    scorer = Scorer(FlexQwenForCausalLM.from_pretrained(checkpoint), tokenizer, "flexqwen")
    if mode == "causal":
        theirs = minicons.IncrementalLMScorer(
            FlexQwenForCausalLM.from_pretrained(checkpoint), "cpu", tokenizer=tokenizer
        )
    else:
        theirs = minicons.MaskedLMScorer(FlexQwenForMaskedLM.from_pretrained(checkpoint), "cpu", tokenizer=tokenizer)
    # minicons 0.3 itself calls, for a masked model, what transformers 5 no longer has.
    batch = texts if mode == "causal" else tokenizer(texts, padding=True)
    expected = theirs.sequence_score(batch, reduction=lambda scores: scores.sum().item())
    assert len(texts) == 50
    np.testing.assert_allclose(scorer.score(texts, mode), expected, rtol=1e-4)
