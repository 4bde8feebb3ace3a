"""For the tests of the fine-tuned tasks: tiny checkpoints, small data in the published formats, an oracle."""

import csv
import gzip
import json
import random
from pathlib import Path

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from flexqwen.evaluation import sources
from tests.helpers.tiny import SHAPE, make_model

WORDS = ["casa", "rio", "livro", "menina", "homem", "cidade", "noite", "pedra", "vento", "mesa", "porta", "barco"]
PEOPLE, PLACES = ("Maria", "José da Silva", "Ana"), ("Lisboa", "São Paulo", "Recife")
GOOD, BAD = ("ótimo", "lindo", "bom"), ("horrível", "feio", "ruim")
TAGS = {"a": "DET", "o": "DET", "canta": "VERB", "corre": "VERB", "velha": "ADJ", "bem": "ADV"}


def save_flexqwen(folder: Path, tokenizer) -> None:
    torch.manual_seed(0)
    model = make_model(vocab_size=len(tokenizer), max_position_embeddings=512)
    for parameter in model.parameters():  # back to what trains well
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.05)
        else:
            parameter.data.fill_(1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_qwen3(folder: Path, tokenizer) -> None:
    torch.manual_seed(0)
    config = {**SHAPE, "vocab_size": len(tokenizer), "pad_token_id": None}
    Qwen3ForCausalLM(Qwen3Config(**config, max_position_embeddings=512)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_bert(folder: Path, tokenizer) -> None:
    """A BERT with a WordPiece tokenizer of its own, which drops spaces and knows segments."""
    texts = [*WORDS, *PEOPLE, *PLACES, *GOOD, *BAD, *TAGS, "da do . ? , em quem 0 1 2 3 4 5 6 7 8 9"]
    words = sorted({word for text in texts for word in text.split()})
    letters = sorted(set("".join(words)))
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    # Trained, it would differ between processes: it breaks ties in the order of a hash.
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(known))}
    pieces = BertWordPieceTokenizer(vocabulary, lowercase=False, strip_accents=False)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    wordpiece = PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=512,
        **special,
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    BertModel(BertConfig(vocab_size=len(wordpiece), max_position_embeddings=512, **shape)).save_pretrained(folder)
    wordpiece.save_pretrained(folder)


SAVERS = {"flexqwen": save_flexqwen, "qwen3": save_qwen3, "bert": save_bert}


def sentence(random: random.Random, *extra: str, words: int = 4) -> str:
    chosen = [random.choice(WORDS) for _ in range(words)] + list(extra)
    random.shuffle(chosen)
    return " ".join(chosen)


def write_csv(path: Path, columns: list[str], rows: list[list]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def write_hatebr(folder: Path, comments: int = 200) -> None:
    source = random.Random(0)
    rows = [[n, sentence(source, source.choice(BAD if n % 2 else GOOD)), n % 2] for n in range(1, comments + 1)]
    write_csv(folder / "HateBR.csv", ["id", "comentario", "label_final"], rows)


def write_toldbr(folder: Path, train: int = 40, test: int = 30, leaked: int = 3) -> None:
    source = random.Random(0)
    rows = [[sentence(source, source.choice(BAD if n % 2 else GOOD), f"t{n}"), n % 2] for n in range(train + 2 * test)]
    test_rows = rows[:leaked] + rows[train + test :][leaked:]
    for split, part in {"train": rows[:train], "validation": rows[train : train + test], "test": test_rows}.items():
        write_csv(folder / f"ptbr_{split}_1annotator.csv", ["text", "toxic"], part)


def write_assin2(folder: Path, pairs: int = 40) -> None:
    """The same pairs in every split."""
    source = random.Random(0)
    lines = []
    for n in range(pairs):
        first = sentence(source)
        second = first if n % 2 else sentence(source)
        label, similarity = ("Entailment", 4 + n % 10 / 10) if n % 2 else ("None", 1 + n % 10 / 10)
        lines.append(
            f'<pair entailment="{label}" id="{n}" similarity="{similarity}"><t>{first}</t><h>{second}</h></pair>'
        )
    xml = f"<entailment-corpus>{''.join(lines)}</entailment-corpus>"
    for split in ("train-only", "dev", "test"):
        (folder / f"assin2-{split}.xml").write_text(xml, encoding="utf-8")


def harem_document(source: random.Random, number: int, entities: int) -> dict:
    text, found = "\n", []
    for n in range(entities):
        text += sentence(source, words=3) + " "
        label, names = (("PESSOA", PEOPLE), ("LOCAL", PLACES))[n % 2]
        name = source.choice(names)
        found.append({"text": name, "label": label, "start_offset": len(text), "end_offset": len(text) + len(name)})
        text += name + source.choice([".", ",", "\n", " "])
    return {"doc_id": f"D{number}", "doc_text": text, "entities": found}


def write_harem(folder: Path, documents: int = 8, entities: int = 12) -> None:
    """The same documents in every split."""
    source = random.Random(0)
    text = json.dumps([harem_document(source, number, entities) for number in range(documents)])
    for scenario in ("selective", "total"):
        for name in (f"FirstHAREM-{scenario}-train", f"FirstHAREM-{scenario}-dev", f"MiniHAREM-{scenario}"):
            (folder / f"{name}.json").write_text(text, encoding="utf-8")


def conllu(name: str, words: list[tuple[str, str]]) -> str:
    """A sentence of words and tags, with " da " (ADP+DET) before its last word and a full stop after it."""
    lines = [f"# text = {' '.join(word for word, _ in words[:-1])} da {words[-1][0]}.", f"# sent_id = {name}"]

    def line(number, form, tag, misc="_"):
        return "\t".join([str(number), form, "_", tag, *["_"] * 5, misc])

    lines += [line(number, form, tag) for number, (form, tag) in enumerate(words[:-1], 1)]
    n = len(words)
    lines += [line(f"{n}-{n + 1}", "da", "_"), line(n, "de", "ADP"), line(n + 1, "a", "DET")]
    lines += [line(n + 2, *words[-1], "SpaceAfter=No"), line(n + 3, ".", "PUNCT"), line(f"{n + 3}.1", "_", "_")]
    return "\n".join(lines) + "\n\n"


def write_bosque(folder: Path, sentences: int = 40, words: int = 6) -> None:
    """The same sentences in every split."""
    source = random.Random(0)
    tags = {**TAGS, **dict.fromkeys(WORDS, "NOUN")}
    text = ""
    for number in range(sentences):
        chosen = [source.choice(list(tags)) for _ in range(words)]
        text += conllu(f"S{number}", [(word, tags[word]) for word in chosen])
    (folder / "pt_bosque-ud-train.from-documents.conllu.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    for split in ("dev", "test"):
        (folder / f"pt_bosque-ud-{split}.conllu").write_text(text, encoding="utf-8")


def write_faquad(folder: Path, questions: int = 24, words: int = 24) -> None:
    """The same questions in every split: who sings in a paragraph. The subject of every fourth is one of dev."""
    source = random.Random(0)
    paragraphs = []
    for number in range(questions):
        name = source.choice(PEOPLE)
        before, after = sentence(source, words=source.randrange(words)), sentence(source, words=words)
        context = f"{before} quem canta é {name} , {after} ."
        answer = {"text": name, "answer_start": context.index(name) + number % 2}  # every other one is off
        asked = [{"id": f"Q{number}", "question": "quem canta ?", "answers": [answer]}]
        paragraphs.append({"context": context, "qas": asked})
    data = [
        {"title": "UFMS", "paragraphs": paragraphs[::4]},
        {"title": "X", "paragraphs": [p for n, p in enumerate(paragraphs) if n % 4]},
    ]
    for name, part in (("train", data), ("dev", data[1:])):
        (folder / f"{name}.json").write_text(json.dumps({"version": "1", "data": part}), encoding="utf-8")


WRITERS = {
    "assin2": write_assin2,
    "bosque_pos": write_bosque,
    "faquad": write_faquad,
    "harem": write_harem,
    "hatebr": write_hatebr,
    "toldbr": write_toldbr,
}


def read_from(folder: Path, monkeypatch) -> None:
    """Evaluation data are read from this folder, whatever they are."""

    def read(name):
        content = (folder / name.rsplit("/", 1)[1]).read_bytes()
        return gzip.decompress(content) if name.endswith(".gz") else content

    monkeypatch.setattr(sources, "read", read)


def oracle(shuffled: bool):
    """Stands in for `fine_tune` where train and test are the same data: answers with the labels of the train rows.

    Shuffled, each answer is that of another row (of classified tokens: of another token).
    """

    def fine_tune(name, model_folder, head, tokenizer, rows, *args):
        train_rows = rows["train"]
        assert [row["input_ids"] for row in train_rows] == [row["input_ids"] for row in rows["test"]]
        assert not any("labels" in row or "start_positions" in row for row in rows["dev"] + rows["test"])
        random = np.random.default_rng(0)
        classes = head.options.get("num_labels", 2)
        outputs = []
        for row in train_rows:
            length = len(row["input_ids"])
            if "start_positions" in row:
                logits = np.zeros((length, 2))
                if row["start_positions"]:
                    logits[row["start_positions"], 0] = logits[row["end_positions"], 1] = 1
            elif isinstance(row["labels"], list):
                logits = np.stack([np.eye(1, classes, max(label, 0))[0] for label in row["labels"]])
            else:
                logits = np.array([row["labels"]]) if classes == 1 else np.eye(1, classes, row["labels"])[0]
            outputs.append(logits)
        if shuffled and isinstance(train_rows[0].get("labels"), list):
            places = [(n, p) for n, row in enumerate(train_rows) for p, label in enumerate(row["labels"]) if label >= 0]
            answers = [outputs[n][p].copy() for n, p in places]
            for (n, p), answer in zip(places, random.permutation(answers), strict=True):
                outputs[n][p] = answer
        elif shuffled and "start_positions" in train_rows[0]:
            outputs = [random.permutation(logits) for logits in outputs]
        elif shuffled:
            outputs = [outputs[number] for number in random.permutation(len(outputs))]
        return [outputs], {}

    return fine_tune
