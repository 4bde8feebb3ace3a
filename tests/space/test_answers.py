"""The page's values are the library's and transformers' own; what people write is text and nothing else."""

import itertools
import re
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from flexqwen.data.trace import Index
from flexqwen.evaluation import likelihood
from flexqwen.evaluation.likelihood import Request
from space import answers
from space.answers import Checkpoint, Copy, Refused
from tests.helpers.datasets import read_split
from tests.helpers.tiny import make_model

SPACE = Path(__file__).parents[2] / "space"
TEXTS = yaml.safe_load((SPACE / "texts.yaml").read_text(encoding="utf-8"))
TAGS = {"figure", "figcaption", "p", "b", "span", "div", "table", "tr", "th", "td", "mark", "small", "h4", "ul", "li"}
SENTENCE = "A professora <mask> lia ${os} livros  🙂\n{{value}} </s> da biblioteca."


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    """A checkpoint of each way of masked prediction."""
    found = {}
    for masked_prediction in ("next_token", "in_place"):
        found[masked_prediction] = folder = tmp_path_factory.mktemp(masked_prediction)
        model = make_model(vocab_size=len(tokenizer), max_position_embeddings=96, masked_prediction=masked_prediction)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return found


@pytest.fixture(scope="module", params=["next_token", "in_place"])
def both(request, folders):
    """A checkpoint as the page loads it, and as the library does."""
    return Checkpoint(str(folders[request.param])), likelihood.load(str(folders[request.param]))


@pytest.fixture(scope="module")
def checkpoint(folders):
    return Checkpoint(str(folders["next_token"]))


def test_surprisals_are_the_library_s_token_by_token(both):
    checkpoint, scorer = both
    ids, pieces = checkpoint.encode(SENTENCE)
    assert "".join(pieces) == SENTENCE and set(ids).isdisjoint({0, 1, 2, 3})
    for mode in ("causal", "masked"):
        bits = checkpoint.surprisals(ids, mode == "masked")
        nats = [-value * torch.log(torch.tensor(2.0)).item() for value in bits]
        assert sum(nats) == pytest.approx(scorer.score([SENTENCE], mode)[0], rel=1e-5)
    ends = list(itertools.accumulate(map(len, pieces)))
    spans = zip(pieces, ends, range(len(ids)), strict=True)
    alone = [(end - len(piece.strip()), end, place) for piece, end, place in spans if piece.strip().isalpha()]
    found = scorer.score([Request(SENTENCE, start, end) for start, end, _ in alone], "masked")
    assert [nats[number] for _, _, number in alone] == pytest.approx(found.tolist(), rel=1e-4)


@settings(max_examples=50, deadline=None)
@given(text=st.text(min_size=1, max_size=30).filter(str.strip))
def test_pieces_are_the_text(checkpoint, text):
    ids, pieces = checkpoint.encode(text)
    assert "".join(pieces) == text and len(ids) == len(pieces)


def test_filling_is_that_of_the_pipeline_and_of_the_model(both, folders):
    checkpoint, _ = both
    name = checkpoint.model.config.masked_prediction
    parts, masks = checkpoint.fill("A professora ___ os livros.")
    stock = pipeline("fill-mask", str(folders[name]), trust_remote_code=True)("A professora <mask> os livros.")
    assert parts == ["A professora", " os livros."]
    assert [p for _, p in masks[0].candidates] == pytest.approx([each["score"] for each in stock], rel=1e-4)
    assert [word.strip() for word, _ in masks[0].candidates] == [each["token_str"].strip() for each in stock]
    _, masks = checkpoint.fill("A [MASK] lia ____ livros da<mask>.")
    row = checkpoint.tokenizer.encode("A", add_special_tokens=True)
    for part in (" lia", " livros da", "."):
        row += [3, *checkpoint.backend.encode(part, add_special_tokens=False).ids]
    filled = checkpoint.model.fill(torch.tensor([row]), num_beams=answers.BEAMS)[0]
    expected = [checkpoint.tokenizer.decode([token]) for token, was in zip(filled, row, strict=True) if was == 3]
    assert [mask.filled for mask in masks] == expected and len(masks) == 3


@pytest.mark.parametrize("bidirectional", [False, True])
def test_writing_is_generation(checkpoint, folders, bidirectional):
    model = AutoModelForCausalLM.from_pretrained(folders["next_token"], trust_remote_code=True).eval()
    inputs = AutoTokenizer.from_pretrained(folders["next_token"])("O museu da cidade", return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    options = {"prefix_length": torch.tensor([length])} if bidirectional else {}
    unwritten = [[token] for token in checkpoint.unwritten]
    ids = model.generate(**inputs, **options, do_sample=False, max_new_tokens=20, bad_words_ids=unwritten)[0, length:]
    expected = checkpoint.tokenizer.decode(ids, skip_special_tokens=True)
    *shorter, last = checkpoint.write("O museu da cidade", bidirectional, 20, 0, 0)
    assert last == expected and all(last.startswith(part.rstrip("�")) for part in shorter)


def test_the_same_seed_writes_the_same(checkpoint):
    one, same, other = (list(checkpoint.write("O museu", False, 12, 1.0, seed)) for seed in (1, 1, 2))
    assert one == same != other
    logits = torch.tensor([9.0, 8.9, 0.0, -5.0])
    assert {int(answers.draw(logits, 1.0, torch.Generator().manual_seed(seed))) for seed in range(50)} == {0, 1}


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "empty"),
        (" \n", "empty"),
        ("a" * 100_000, "long"),
        ("á é í ó ú " * 30, "long"),
        ("nenhuma lacuna", "masks"),
        ("___ " * 11, "masks"),
    ],
)
def test_what_is_not_answered_has_a_reason(checkpoint, text, reason):
    ask = checkpoint.fill if reason == "masks" or not text.strip() else checkpoint.encode
    with pytest.raises(Refused) as refused:
        ask(text)
    assert refused.value.reason == reason
    for texts in TEXTS.values():
        values = {name: texts["units"].get(value, value) for name, value in refused.value.values.items()}
        assert "{" not in texts[reason].format(**values)


@pytest.mark.parametrize("language", TEXTS)
def test_what_people_write_is_no_html_and_no_template(checkpoint, language):
    evil, texts = '<script>alert("1")</script> <img src=x onerror=y> ${z} {{value}} \' ___', TEXTS[language]
    shown = [
        answers.show_modes(checkpoint, texts, evil),
        answers.show_fill(checkpoint, texts, evil),
        answers.show_likelier(checkpoint, texts, evil, "Sim."),
        answers.show_written(evil, evil, texts, [Copy(0, 9, evil, evil)]),
    ]
    for page in shown:
        tags = set(re.findall(r"<(\w+)", page))
        assert tags <= TAGS, tags
        assert "$" not in page and "{" not in page and "onerror=y>" not in page


def test_values_on_the_page_are_those_of_the_checkpoint(checkpoint):
    _, columns = checkpoint.columns("A casa branca.")
    page = answers.show_modes(checkpoint, TEXTS["en"], "A casa branca. ")
    strips = re.findall(r'data-bits="([^ "]+) bits"', page)
    causal, masked = columns["causal"], columns["masked"]
    expected = [*causal, *masked, *(one - other for one, other in zip(causal, masked, strict=True))]
    assert strips == [f"{value:.2f}".replace("-", "−") for value in expected]
    page = answers.show_likelier(checkpoint, TEXTS["pt"], "A casa branca.", "A casa branco.")
    other = checkpoint.columns("A casa branco.")[1]
    sums = [[sum(each["causal"]), sum(each["masked"])] for each in (columns, other)]
    for one, two in zip(*([*each, sum(each)] for each in sums), strict=True):
        winner = "a primeira" if one < two else "a segunda"
        assert f"<td>{winner}, por {abs(one - two):.2f} bits</td>".replace(".", ",") in page.replace(".", ",")


def test_copies_are_marked_with_their_source_and_licence():
    copies = [Copy(4, 9, "Wikipédia", "CC BY-SA"), Copy(5, 7, "within", "another")]
    page = answers.show_written("O", " rio corre", TEXTS["en"], copies)
    assert ' rio<mark title="Wikipédia; CC BY-SA" tabindex="0"> corr</mark>e' in page
    assert "<li>Wikipédia (CC BY-SA)</li>" in page


def test_what_a_dataset_holds_is_a_copy(built, tmp_path):
    row = read_split(built, "gold").to_pylist()[0]
    copied = " ".join(row["text"].split()[:10])
    index = Index(built, tmp_path / "index", ["gold"])
    assert answers.find_copies(index, f"novo {copied} novo") == [
        Copy(5, 5 + len(copied), row["source"], row["license"])
    ]
    assert answers.find_copies(index, "novo") == answers.find_copies(None, copied) == []


def test_both_languages_say_the_same_things():
    def names(texts):
        return {name: names(value) if isinstance(value, dict) else None for name, value in texts.items()}

    portuguese, english = (names(TEXTS[language]) for language in ("pt", "en"))
    for tab in portuguese["tabs"].values():
        tab.pop("examples")
    assert portuguese == english


def test_the_space_has_the_versions_that_are_tested():
    pins, tested = (
        dict(re.findall(r"^([\w-]+)==(.+)$", (folder / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE))
        for folder in (SPACE, SPACE.parent)
    )
    front = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert front["sdk"] == "gradio" and front["sdk_version"] == pins["gradio"] and front["app_file"] == "app.py"
    assert all(version == tested[name] for name, version in pins.items() if name != "gradio")
