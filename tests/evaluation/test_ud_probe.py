"""Probes learn what the states hold, and the states are the model's own."""

import conllu
import pytest
import torch

from flexqwen.evaluation.likelihood import Scorer
from flexqwen.evaluation.tasks import Context, Item, load_task, ud_probe
from flexqwen.evaluation.treebanks import Sentence
from tests.helpers.tiny import make_model

ROWS = [
    ("1", "Os", "DET", "2"),
    ("2", "meninos", "NOUN", "3"),
    ("3", "gostam", "VERB", "0"),
    ("4-5", "da", "_", "_"),
    ("4", "de", "ADP", "6"),
    ("5", "a", "DET", "6"),
    ("6", "casa", "NOUN", "3"),
]
LINES = ["\t".join([n, form, form.lower(), tag, "_", "_", head, "x", "_", "_"]) for n, form, tag, head in ROWS]
TEXT = "# sent_id = {}\n# text = Os meninos gostam da casa\n" + "\n".join(LINES) + "\n\n"


def sentences(number):
    return [Sentence(parsed) for n in range(number) for parsed in conllu.parse(TEXT.format(n))]


@pytest.mark.parametrize("mode", ["causal", "masked"])
def test_a_words_state_is_that_of_its_last_token(tokenizer, mode):
    model = make_model(vocab_size=len(tokenizer), max_position_embeddings=64)
    (words,) = map(ud_probe.Words, sentences(1))
    assert (words.forms, words.heads.tolist()) == (["os", "meninos", "gostam", "casa"], [1, 2, -1, 2])
    (states,) = ud_probe.find_states(Scorer(model, tokenizer, "flexqwen"), [words], mode)
    for end, state in zip(words.ends, states, strict=True):
        ids, whole = (tokenizer(words.text[:stop], return_tensors="pt").input_ids for stop in (end, None))
        assert (whole[0, : ids.shape[1]] == ids[0]).all()
        with torch.no_grad():
            found = model.model(whole, is_causal=mode == "causal", output_hidden_states=True).hidden_states
        torch.testing.assert_close(state, torch.stack(found).mean(0)[0, ids.shape[1] - 1], atol=1e-4, rtol=1e-4)


def test_probes_find_what_the_states_hold():
    torch.manual_seed(0)
    states, tags = torch.randn(300, 16), [["A", "B"][n % 2] for n in range(300)]
    states[::2, 3] += 6
    assert ud_probe.predict_tags(states[:200], tags[:200], states[200:]) == tags[200:]
    items, known = sentences(60), []
    words = list(map(ud_probe.Words, items))
    for part in words:  # a word's state names its head's
        names = torch.randn(4, 16)
        known.append(torch.cat([names, names[part.heads]], dim=1))
    probe = ud_probe.fit_arcs(known, words)
    heads = probe(known[:1])[0].argmax(-1)
    assert heads[[0, 1, 3]].tolist() == [1, 2, 2]


def test_the_task_gives_tags_and_heads_beside_their_baselines(tokenizer, monkeypatch):
    monkeypatch.setattr(ud_probe, "read_sentences", lambda name, prefix: sentences(8))
    scorer = Scorer(make_model(vocab_size=len(tokenizer), max_position_embeddings=64), tokenizer, "flexqwen")
    items = [Item(f"{n}", "") for n in range(5)]
    tags, arcs = load_task("ud_probe").evaluate(scorer, items, "masked", Context())
    assert (tags.subset, tags.n, tags.value, tags.baseline) == ("upos", 5, 1, 1)
    assert (arcs.subset, arcs.details["words"], arcs.baseline) == ("arcs", 15, pytest.approx(2 / 3))
