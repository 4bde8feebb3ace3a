"""Held-out text: every token predicted once, as a plain loop predicts it."""

import numpy as np
import pytest
import torch

from flexqwen.data.texts import read_texts
from flexqwen.evaluation.heldout import MASK_GROUPS, make_rows, score, score_unigram, tokenize_texts
from modeling_flexqwen import FlexQwenForMaskedLM
from tests.helpers.tiny import make_model


@pytest.fixture(scope="module")
def text(built, tokenizer):
    return tokenize_texts([text for _, text in read_texts(built, "heldout", "test", 2)], tokenizer, 64)


@pytest.mark.parametrize("mode", ["causal", "masked"])
@pytest.mark.parametrize("masked_prediction", ["next_token", "in_place"])
def test_scores_equal_a_plain_loop(text, tokenizer, mode, masked_prediction):
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "masked_prediction": masked_prediction}
    model, masked_lm = make_model(**options), make_model(FlexQwenForMaskedLM, **options)
    masked_lm.load_state_dict(model.state_dict())
    nats = score(model, text, mode, batch_tokens=300)
    expected, predicted = np.zeros(len(text)), np.zeros(len(text), dtype=int)
    for number, (piece, owner) in enumerate(text.pieces):
        groups = np.random.default_rng([MASK_GROUPS, number]).permutation(len(piece)) % MASK_GROUPS
        for place in range(1, len(piece)):
            if piece[place] == tokenizer.eos_token_id:
                continue
            ids = torch.tensor(piece)[None]
            with torch.no_grad():
                if mode == "causal":
                    logits = model(ids[:, :place]).logits[0, -1]
                else:
                    hidden = (groups == groups[place]) & (piece != tokenizer.eos_token_id)
                    hidden[0] = False
                    ids[0, hidden] = tokenizer.mask_token_id
                    logits = masked_lm(ids).logits[0, place]
            expected[owner] -= logits.log_softmax(-1)[piece[place]].item()
            predicted[owner] += 1
    assert predicted.tolist() == text.tokens.tolist()
    np.testing.assert_allclose(nats, expected, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_every_token_is_predicted_once_but_the_first_and_the_last(text, masked):
    predicted = np.zeros(len(text), dtype=int)
    for row in make_rows(text, masked):
        assert 0 not in row.positions and text.eos_token_id not in row.tokens[row.positions]
        predicted[row.owner] += len(row.positions)
    assert predicted.tolist() == text.tokens.tolist()


def test_unigram_is_the_cross_entropy_of_counted_frequencies(text, built, tokenizer):
    nats = score_unigram(str(built), tokenizer, text)
    assert 0 < nats.sum() / text.tokens.sum() < np.log(len(tokenizer))
