"""The fine-tuned tasks: their files, words and tokens, metrics with known answers, baselines."""

import gzip
import itertools
import json
import os
from dataclasses import asdict, replace

import numpy as np
import pytest
from conllu import parse
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score as class_f1
from transformers import AutoModelForSequenceClassification

from flexqwen.cli import InputError
from flexqwen.evaluation import finetuning, statistics
from flexqwen.evaluation.finetuning import load_tokenizer, tagging, text_classification
from flexqwen.evaluation.finetuning.tagging import Tagged
from flexqwen.evaluation.metrics.entity_f1.entity_f1 import count_entities
from flexqwen.evaluation.tasks import FINE_TUNED, Context, assin2, bosque_pos, faquad, harem, load_task, offensive
from flexqwen.evaluation.treebanks import Sentence, read_sentences
from tests.helpers.finetuned import (
    SAVERS,
    WORDS,
    WRITERS,
    conllu,
    oracle,
    read_from,
    write_assin2,
    write_bosque,
    write_faquad,
    write_harem,
    write_hatebr,
    write_toldbr,
)

WINDOW = Context("none", max_length=48)  # smaller than the tests' documents and paragraphs
WHOLE = Context("none", max_length=512)
HATEBR_TEST = ["7", "10", "13", "20", "21", "25", "27", "31"]
BEST = {"mse": 0.0}  # of every other metric it is 1


@pytest.fixture(autouse=True)
def _few_bootstrap_samples(monkeypatch):
    monkeypatch.setattr(statistics, "SAMPLES", 20)


@pytest.fixture(scope="module")
def checkpoints(tokenizer, tmp_path_factory):
    """Only their tokenizers and configs are used here."""
    folders = {name: tmp_path_factory.mktemp("checkpoints") / name for name in ("flexqwen", "bert")}
    for name, folder in folders.items():
        SAVERS[name](folder, tokenizer)
    return {name: str(folder) for name, folder in folders.items()}


def answered(monkeypatch, task, model_folder, folder, context, shuffled):
    """The task's results where the oracle answers in the place of a model."""
    monkeypatch.setattr(finetuning, "fine_tune", oracle(shuffled))
    read_from(folder, monkeypatch)
    if task in ("hatebr", "toldbr"):  # whose files cannot hold the same data in every split
        test = getattr(offensive, f"read_{task}")()["test"]
        monkeypatch.setattr(offensive, f"read_{task}", lambda: {"train": test, "dev": test, "test": test})
    return load_task(task).fine_tune(model_folder, context)


def check_known_answers(results, shuffled):
    for result in results:
        if not shuffled:
            assert result.value == pytest.approx(BEST.get(result.metric, 1.0)), result
        elif result.metric == "mse":  # two independent draws: twice the variance
            assert result.value > 1.5 * result.details["mean_similarity_of_train"], result
        elif result.metric == "pearson":
            assert abs(result.value) < 0.35, result
        elif result.task in ("harem", "faquad"):
            assert result.value < 0.3, result
        elif result.task == "bosque_pos":
            assert result.value < 0.55, result  # the sum of the squared shares of the tags
        else:
            assert 0.3 < result.value < 0.7, result


@pytest.mark.parametrize("shuffled", [False, True], ids=["gold labels", "shuffled labels"])
@pytest.mark.parametrize("kind", ["flexqwen", "bert"])
@pytest.mark.parametrize(
    ("task", "write"),
    [
        ("assin2", lambda folder: write_assin2(folder, 60)),
        ("bosque_pos", lambda folder: write_bosque(folder, 10, words=90)),
        ("faquad", lambda folder: write_faquad(folder, 40, words=60)),
        ("harem", lambda folder: write_harem(folder, 4, entities=40)),
        ("hatebr", lambda folder: write_hatebr(folder, 400)),
        ("toldbr", lambda folder: write_toldbr(folder, test=100)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_gold_labels_are_perfect_and_shuffled_ones_at_chance(
    monkeypatch, tmp_path, checkpoints, task, write, kind, shuffled
):
    """From the files through windows, tokens and back, whatever the tokenizer: nothing is lost or misplaced."""
    write(tmp_path)
    results = answered(monkeypatch, task, checkpoints[kind], tmp_path, WINDOW, shuffled)
    check_known_answers(results, shuffled)
    for result in results:
        assert result.mode == "finetuned" and result.baseline_name
        if task == "bosque_pos":  # the words of a sentence are one cluster
            assert result.clusters == [int(name[1:].split("/")[0]) for name in result.item_ids]
        json.dumps(asdict(result), allow_nan=False)


@pytest.mark.parametrize("task", WRITERS)
def test_test_items_that_were_trained_on_are_counted_and_can_be_left_out(monkeypatch, tmp_path, checkpoints, task):
    """Here the first one was, of the last one it cannot be said."""

    def fine_tune(name, model_folder, head, tokenizer, rows, *args):
        shape = (head.options.get("num_labels", 2),)
        whole = head.auto_class is AutoModelForSequenceClassification
        return [[np.zeros(shape if whole else (len(row["input_ids"]), *shape)) for row in rows["test"]]], {}

    monkeypatch.setattr(finetuning, "fine_tune", fine_tune)
    texts = []

    def seen_shares(asked, dataset):
        texts.append(asked)
        return np.array([0.5, *[0.0] * (len(asked) - 2), np.nan])

    monkeypatch.setattr("flexqwen.data.passages.find_seen_shares", seen_shares)
    WRITERS[task](tmp_path)
    read_from(tmp_path, monkeypatch)
    (tmp_path / "manifest.json").touch()
    everything, without = (
        load_task(task).fine_tune(checkpoints["flexqwen"], replace(WHOLE, dataset=str(tmp_path), exclude_seen=exclude))
        for exclude in (False, True)
    )
    keys = ("seen_items", "excluded", "too_short_to_tell")
    for all_of, rest in zip(everything, without, strict=True):
        assert [all_of.details[key] for key in keys] == [1, 0, 1] and all_of.details["seen_share"] > 0
        assert [rest.details[key] for key in keys] == [0, 1, 1] and rest.details["seen_share"] == 0
        assert rest.n < all_of.n or all_of.subset.startswith("without the")  # ToLD-Br's first one is a leaked one
    assert all(any(word in text for word in WORDS) for asked in texts for text in asked)


@pytest.mark.real_data
@pytest.mark.parametrize("shuffled", [False, True], ids=["gold labels", "shuffled labels"])
@pytest.mark.parametrize("task", FINE_TUNED)
def test_the_same_on_the_real_test_sets(monkeypatch, tmp_path, eval_data, checkpoints, task, shuffled):
    source = eval_data / {"bosque_pos": "ud_bosque"}.get(task, task)
    copies = {
        "assin2": [("assin2-test.xml", name) for name in assin2.FILES.values()],
        "bosque_pos": [("pt_bosque-ud-test.conllu", name) for name in map(os.path.basename, bosque_pos.FILES.values())],
        "faquad": [("dev.json", name) for name in faquad.FILES.values()],
        "harem": [
            (f"MiniHAREM-{scenario}.json", f"{name}-{scenario}{part}.json")
            for scenario in harem.SCENARIOS
            for name, part in (("FirstHAREM", "-train"), ("FirstHAREM", "-dev"), ("MiniHAREM", ""))
        ],
    }
    for published, name in copies.get(task, []):
        content = (source / published).read_bytes()
        if name == "train.json":  # one subject must be of those that choose the learning rate
            subjects = json.loads(content)["data"]
            content = json.dumps({"data": [*subjects, {**subjects[0], "title": "UFMS"}]}).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    context = replace(WHOLE, limit={"bosque_pos": 300, "faquad": None, "harem": 25}.get(task, 500))
    folder = tmp_path if task in copies else source
    results = answered(monkeypatch, task, checkpoints["flexqwen"], folder, context, shuffled)
    if task == "faquad" and not shuffled:  # the tests' poor tokenizer makes some answers longer than a window
        unreachable = results[0].details["unreachable_answers"]["test"]
        assert unreachable < 6 and results[0].value == pytest.approx(1 - unreachable / 63)
    else:
        check_known_answers(results, shuffled)


@pytest.mark.real_data
def test_the_real_files_are_what_their_authors_say(eval_data):
    splits = {
        "assin2": assin2.read()["rte"],
        "hatebr": offensive.read_hatebr(),
        "toldbr": offensive.read_toldbr(),
        "faquad": faquad.read(),
        **{scenario: harem.read(scenario) for scenario in harem.SCENARIOS},
    }
    assert {task: [len(split[name]) for name in ("train", "dev", "test")] for task, split in splits.items()} == {
        "assin2": [6500, 500, 2448],
        "hatebr": [4480, 1120, 1400],
        "toldbr": [16800, 2100, 2100],
        "faquad": [733, 104, 63],
        "selective": [121, 8, 128],
        "total": [121, 8, 128],
    }
    assert [example.id for example in splits["hatebr"]["test"][:8]] == HATEBR_TEST
    for scenario, entities in (("selective", 3018), ("total", 3642)):  # none is lost between words and labels
        labels = [text.labels for text in splits[scenario]["test"]]
        assert count_entities(labels, labels).sum(0).tolist() == [entities] * 3
    assert sum(example.subsets == {"without the 30 leaked texts"} for example in splits["toldbr"]["test"]) == 2070
    assert all(question.span for split in splits["faquad"].values() for question in split)
    sentences = list(map(bosque_pos.join_tags, read_sentences(bosque_pos.FILES["test"], "")))
    assert (len(sentences), sum(map(len, bosque_pos.split_tags(sentences)))) == (1167, 27604)


# Windows


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(8, 64), st.data())
def test_windows_hold_every_word_and_overlap(lengths, room, data):
    overlap = data.draw(st.integers(0, room - 1))
    found = tagging.cut_windows(lengths, room, overlap)
    assert sorted({word for stretch in found for word in stretch}) == list(range(len(lengths)))
    for stretch in found:
        assert len(stretch) == 1 or sum(lengths[word] for word in stretch) <= room
    for one, following in itertools.pairwise(found):
        assert one.start < following.start <= one.stop < following.stop
        shared = sum(lengths[word] for word in range(following.start, one.stop))
        assert shared <= overlap
        more = shared + lengths[following.start - 1]  # one word more to share is one too many
        assert following.start - 1 == one.start or more > overlap or more + lengths[one.stop] > room
    owners = tagging.choose_windows(found)
    assert len(owners) == len(lengths) and owners == sorted(owners)
    assert all(word in found[owner] for word, owner in enumerate(owners))


def test_a_word_belongs_to_the_window_where_it_stands_farthest_from_a_cut():
    assert tagging.cut_windows([1] * 10, 6, 2) == [range(0, 6), range(4, 10)]
    assert tagging.choose_windows([range(0, 6), range(4, 10)]) == [0] * 5 + [1] * 5


def test_a_word_is_read_at_its_first_token_that_is_not_a_space(checkpoints):
    text = Tagged("1", ["O", " 12", " casarões", "(", "Rio", " de", ")."], ["X"] * 7)
    tokenizer = load_tokenizer(checkpoints["flexqwen"], WHOLE)
    (row,), places = tagging.encode(tokenizer, [text])
    tokens = [tokenizer.decode(token) for token in row["input_ids"]]
    assert "".join(tokens[1:]) == "O 12 casarões(Rio de)." and tokens[0] == "<s>"
    assert [place.word for place in places] == list(range(7)) and {place.text for place in places} == {0}
    firsts = [tokens[place.position] for place in places]
    assert firsts[1] == "1" and all(
        word.strip().startswith(first.strip()) for word, first in zip(text.words, firsts, strict=True)
    )
    # as in running text, but that no token spans two words
    assert tokenizer("O casarões de").input_ids == tagging.encode(
        tokenizer, [Tagged("1", ["O", " casarões", " de"], ["X"] * 3)]
    )[0][0]["input_ids"]  # fmt: skip


def test_a_word_without_a_token_gets_the_first_label(checkpoints):
    tokenizer = load_tokenizer(checkpoints["bert"], WHOLE)
    texts = [Tagged("1", ["casa", "\u200b", "rio"], ["X"] * 3)]
    (row,), places = tagging.encode(tokenizer, texts)
    assert [place.word for place in places] == [0, 2]
    outputs = [np.full((len(row["input_ids"]), 2), [0.0, 1.0])]
    assert tagging.gather(outputs, places, texts)[0].argmax(-1).tolist() == [1, 0, 1]


# HAREM


def document(text, *entities):
    found = [
        {"text": part, "label": label, "start_offset": start, "end_offset": start + len(part)}
        for part, label, start in entities
    ]
    return {"doc_id": "D1", "doc_text": text, "entities": found}


def test_harem_words_and_labels():
    text = "A Rua da Praia, 12\n(Porto-Alegre)"
    tagged = harem.label_words(
        document(text, ("Rua da Praia", "LOCAL", 2), (" 12", "VALOR", 15), ("Porto", "LOCAL", 20))
    )
    assert tagged.words == ["A", " Rua", " da", " Praia", ",", " 12", " (", "Porto", "-", "Alegre", ")"]
    assert tagged.labels == ["O", "B-LOCAL", "I-LOCAL", "I-LOCAL", "O", "B-VALOR", "O", "B-LOCAL", "O", "O", "O"]


def test_harem_baseline_looks_entities_up():
    train = [Tagged("1", ["São", " Paulo", " e", " Ana", " Ana"], ["B-LOCAL", "I-LOCAL", "O", "B-PESSOA", "B-LOCAL"])]
    test = [Tagged("2", ["Em", " São", " Paulo", " Ana", " São"], ["O"] * 5)]
    assert harem.look_up_entities(train, test) == [["O", "B-LOCAL", "I-LOCAL", "O", "O"]]


# Bosque


def test_bosque_scores_the_syntactic_words_of_contractions():
    (parsed,) = parse(conllu("S1", [("casa", "NOUN"), ("velha", "ADJ"), ("rua", "NOUN")]))
    read = bosque_pos.join_tags(Sentence(parsed))
    assert read.words == ["casa", " velha", " da", " rua", "."]
    assert read.labels == ["NOUN", "ADJ", "ADP+DET", "NOUN", "PUNCT"]
    assert bosque_pos.split_tags([read]) == [["NOUN", "ADJ", "ADP", "DET", "NOUN", "PUNCT"]]
    labels = ["NOUN", "ADJ", "PUNCT", "ADP+DET", "ADP+PRON"]
    logits = np.zeros((5, 5))
    logits[[0, 1, 3, 4], [0, 1, 0, 2]] = 1
    logits[2] = [9, 0, 0, 1, 2]  # NOUN is likeliest, but "da" is two words
    assert bosque_pos.predict_tags([logits], [read], labels) == [["NOUN", "ADJ", "ADP", "PRON", "NOUN", "PUNCT"]]
    assert bosque_pos.predict_tags([logits[:, :3]], [read], labels[:3])[0][2:4] == ["NOUN", "NOUN"]
    assert bosque_pos.predict_frequent_tags([read], [read], labels) == bosque_pos.split_tags([read])


# Texts


def test_hatebr_is_split_in_code(tmp_path, monkeypatch):
    write_hatebr(tmp_path, 1000)
    read_from(tmp_path, monkeypatch)
    splits = offensive.read_hatebr()
    assert {split: (len(examples), sum(e.label for e in examples)) for split, examples in splits.items()} == {
        "train": (640, 320),
        "dev": (160, 80),
        "test": (200, 100),
    }
    assert len({example.id for examples in splits.values() for example in examples}) == 1000
    assert [example.id for example in splits["test"][:6]] == ["2", "6", "7", "10", "13", "20"]


def test_toldbr_is_scored_with_and_without_the_leaked_texts(monkeypatch, tmp_path, checkpoints):
    write_toldbr(tmp_path, train=40, test=30, leaked=3)

    def fine_tune(name, model_folder, head, tokenizer, rows, *args):
        """Knows the texts that stand in train, and says 0 to any other."""
        known = {tuple(row["input_ids"]): row["labels"] for row in rows["train"]}
        labels = [known.get(tuple(row["input_ids"]), 0) for row in rows["test"]]
        return [[np.eye(2)[label] for label in labels]], {}

    monkeypatch.setattr(finetuning, "fine_tune", fine_tune)
    read_from(tmp_path, monkeypatch)
    results = load_task("toldbr").fine_tune(checkpoints["flexqwen"], WHOLE)
    found = {(result.subset, result.metric): result for result in results}
    everything, clean = found["all", "accuracy"], found["without the 3 leaked texts", "accuracy"]
    assert (everything.n, clean.n, len(clean.items)) == (30, 27, 27)
    assert everything.value == pytest.approx((3 + 27 * clean.value) / 30) and clean.value < everything.value
    assert not {f"test-{number}" for number in range(3)} & set(clean.item_ids)


def test_macro_f1_and_its_baseline():
    gold, predicted = [0, 0, 0, 1], [0, 0, 1, 1]
    assert text_classification.compute_macro_f1(gold, predicted) == class_f1(gold, predicted, average="macro")
    assert text_classification.compute_macro_f1([0, 0], [0, 0]) == 0.5
    levels = text_classification.score_without_reading([0] * 70 + [1] * 30, [0] * 60 + [1] * 40)
    assert levels["accuracy"]["majority"] == 0.6 and levels["macro_f1"]["random"] == pytest.approx(0.5, abs=0.02)


def test_the_bag_of_words_reads_each_text_by_itself():
    words = ("rio", "casa", "mar")
    pairs = [
        text_classification.Example(f"{n}", (words[n % 3], words[(n // 3) % 3]), int(n // 3 % 3 == 0))
        for n in range(36)
    ]
    assert text_classification.predict_by_words(pairs, pairs).tolist() == [pair.label for pair in pairs]
    assert text_classification.predict_by_words(pairs[:3], pairs).tolist() == [1] * 36  # one class in train


def test_cut_texts_are_counted(checkpoints):
    tokenizer = load_tokenizer(checkpoints["flexqwen"], WINDOW)
    examples = [text_classification.Example("1", ("casa " * 100,), 0), text_classification.Example("2", ("casa",), 0)]
    rows, cut = text_classification.encode(tokenizer, examples)
    assert cut == 1 and len(rows[0]["input_ids"]) == 48


# ASSIN 2


def test_pearson_of_a_constant_is_0():
    assert assin2.compute_pearson(np.array([1.0, 2, 3]), np.array([2.0, 2, 2])) == 0
    assert assin2.compute_pearson(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)


def test_the_baseline_of_sts_is_word_overlap():
    def pairs(*rows):
        return [text_classification.Example("1", texts, label) for *texts, label in rows]

    train = pairs(("Uma casa.", "uma casa", 5.0), ("um rio", "a mesa", 2.0), ("o rio bom", "rio bom mesa", 3.5))
    assert assin2.measure_overlap(train).tolist() == [1, 0, 0.5]
    assert assin2.predict_by_overlap(train, train) == pytest.approx([5, 2, 3.5])
    steep = pairs(("a", "a", 5.0), ("a b", "a c", 1.0))  # at 0 the line is below the scale
    assert assin2.predict_by_overlap(steep, pairs(("a", "b", 1.0))).tolist() == [1]


# FaQuAD


def test_faquad_answers_are_found_near_their_offset():
    assert faquad.locate("a casa e a casa", "casa", 9) == (11, 15)
    assert faquad.locate("a casa e a casa", "casa", 0) == (2, 6)
    assert faquad.locate("a casa", "rio", 0) is None and faquad.locate("a casa", "", 0) is None


def test_faquad_best_span_and_empty_predictions():
    question = faquad.Question("1", "?", "o rio , a casa", ("casa",), None)
    places = [None, (0, 1), (2, 5), (6, 7), (8, 9), (10, 14)]
    logits = np.zeros((6, 2))
    logits[0] = 99  # not of the context
    logits[5, 0], logits[2, 1] = 5, 4  # the end before the start
    logits[2, 0] = 3
    assert faquad.extract_answers([logits], [(0, places)], [question]) == ["rio"]
    better = np.zeros((6, 2))
    better[3] = 9
    assert faquad.extract_answers([logits, better], [(0, places), (0, places)], [question]) == [","]
    assert faquad.extract_answers([logits], [(0, [None] * 6)], [question]) == [""]


def test_faquad_says_which_questions_have_a_paragraph_of_train(monkeypatch, tmp_path, checkpoints):
    write_faquad(tmp_path, 8)
    path = tmp_path / "train.json"
    split = json.loads(path.read_text())
    for paragraph in split["data"][1]["paragraphs"][2:]:
        name = paragraph["qas"][0]["answers"][0]
        paragraph["context"] = name["text"]
    path.write_text(json.dumps(split))
    test = json.loads((tmp_path / "dev.json").read_text())
    asked = test["data"][0]["paragraphs"][-1]["qas"]
    asked.append({**asked[0], "id": "more"})  # on the same paragraph
    (tmp_path / "dev.json").write_text(json.dumps(test))

    def fine_tune(name, model_folder, head, tokenizer, rows, *args):
        return [[np.zeros((len(row["input_ids"]), 2)) for row in rows["test"]]], {}

    monkeypatch.setattr(finetuning, "fine_tune", fine_tune)
    read_from(tmp_path, monkeypatch)
    results = faquad.run(checkpoints["flexqwen"], WHOLE)
    assert [(result.subset, result.n) for result in results] == [("all", 7)] * 2 + [("paragraphs not in train", 5)] * 2
    assert results[0].clusters == [0, 1, 2, 3, 4, 5, 5] and results[2].clusters == [0, 1, 2, 3, 3]
    assert results[0].details["unreachable_answers"] == {"train": 0, "test": 0}


def test_a_question_too_long_for_the_model_is_one_clear_line(checkpoints):
    tokenizer = load_tokenizer(checkpoints["flexqwen"], WINDOW)
    question = faquad.Question("Q7", "quem " * 60, "casa", ("casa",), (0, 4))
    with pytest.raises(InputError, match="question Q7 takes more than a third of an input of 48 tokens"):
        faquad.encode(tokenizer, [question])
