"""UD Portuguese Bosque: universal part of speech of each syntactic word (UPOS accuracy). See docs/tasks.md."""

from collections import Counter, defaultdict

import numpy as np

from flexqwen.evaluation import finetuning
from flexqwen.evaluation.finetuning.tagging import Tagged, tag
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Context, Task
from flexqwen.evaluation.treebanks import Sentence, read_sentences

NUM_TRAIN_EPOCHS = 5
FILES = {split: f"ud_bosque/pt_bosque-ud-{split}.conllu" for split in ("dev", "test")}
FILES = {"train": "ud_bosque/pt_bosque-ud-train.from-documents.conllu.gz", **FILES}
JOIN = "+"


def join_tags(sentence: Sentence) -> Tagged:
    """The written words of a sentence; the label of a contraction is the tags of its parts."""
    words, labels = [], []
    for token in sentence.written:
        number, start = token["id"], sentence.starts[token["id"]]
        parts = [number] if isinstance(number, int) else range(number[0], number[2] + 1)
        labels.append(JOIN.join(sentence.tokens[part]["upos"] for part in parts))
        words.append(" " * sentence.text[:start].endswith(" ") + token["form"])
    return Tagged(sentence.id, words, labels)


def predict_tags(logits: list[np.ndarray], texts: list[Tagged], labels: list[str]) -> list[list[str]]:
    """Tags of the syntactic words of each text, from the logits `(words, labels)` of its written words.

    How many syntactic words a written one has is given. Where train has no label with as many, each gets label 0.
    """
    sizes = np.array([label.count(JOIN) + 1 for label in labels])
    predicted = []
    for text, scores in zip(texts, logits, strict=True):
        tags = []
        for label, row in zip(text.labels, scores, strict=True):
            parts = label.count(JOIN) + 1
            fitting = np.flatnonzero(sizes == parts)
            tags += labels[fitting[row[fitting].argmax()]].split(JOIN) if len(fitting) else [labels[0]] * parts
        predicted.append(tags)
    return predicted


def split_tags(texts: list[Tagged]) -> list[list[str]]:
    """Gold tags of the syntactic words of each text."""
    return [[tag for label in text.labels for tag in label.split(JOIN)] for text in texts]


def predict_frequent_tags(train: list[Tagged], test: list[Tagged], labels: list[str]) -> list[list[str]]:
    """The baseline's tags of the syntactic words of each test text."""
    of_word, overall = defaultdict(Counter), Counter()
    for text in train:
        overall.update(text.labels)
        for word, label in zip(text.words, text.labels, strict=True):
            of_word[word.strip().lower()][label] += 1
    common = [overall[label] / (overall.total() + 1) for label in labels]  # under 1: decides where all are even
    known = [[of_word[word.strip().lower()] for word in text.words] for text in test]
    ranks = [np.array([[counter[label] for label in labels] for counter in text]) + common for text in known]
    return predict_tags(ranks, test, labels)


def compare_tags(gold: list[list[str]], predicted: list[list[str]]) -> list[np.ndarray]:
    """For each text whether each tag is right."""
    return [np.array(true) == np.array(said) for true, said in zip(gold, predicted, strict=True)]


def run(model_folder: str, context: Context) -> list[Result]:
    """Accuracy over syntactic words; the interval draws sentences, `items` are words, `clusters` their sentences."""
    splits = {split: list(map(join_tags, read_sentences(name, ""))) for split, name in FILES.items()}
    splits, seen = finetuning.prepare_splits(splits, lambda text: "".join(text.words), context)
    test = splits["test"]
    labels = [label for label, _ in Counter(label for text in splits["train"] for label in text.labels).most_common()]
    gold = {split: split_tags(splits[split]) for split in ("dev", "test")}

    def score_dev(logits: list[np.ndarray]) -> float:
        return np.concatenate(compare_tags(gold["dev"], predict_tags(logits, splits["dev"], labels))).mean()

    name, metric = "bosque_pos", "accuracy"
    outputs, details = tag(name, model_folder, splits, labels, score_dev, metric, context, NUM_TRAIN_EPOCHS)
    right = [compare_tags(gold["test"], predict_tags(logits, test, labels)) for logits in outputs]
    sums = np.array([[sentence.sum() for sentence in seed] for seed in right])
    lengths = np.array([len(tags) for tags in gold["test"]])
    items = np.mean([np.concatenate(seed) for seed in right], axis=0)
    baseline = compare_tags(gold["test"], predict_frequent_tags(splits["train"], test, labels))
    fields = {
        "n": len(items),
        "baseline": float(np.concatenate(baseline).mean()),
        "baseline_name": "each word's most frequent tag in train",
        "details": {**details, **seen, "sentences": len(test)},
        "items": items.tolist(),
        "item_ids": [f"{text.id}/{n}" for text, length in zip(test, lengths, strict=True) for n in range(length)],
        "clusters": np.repeat(np.arange(len(test)), lengths).tolist(),
    }
    return [
        finetuning.seeds_result(BOSQUE_POS, metric, lambda true, said: said.sum() / true.sum(), lengths, sums, **fields)
    ]


BOSQUE_POS = Task("bosque_pos", 3, fine_tune=run, sources="ud_bosque")
