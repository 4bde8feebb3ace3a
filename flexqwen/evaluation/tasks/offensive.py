"""Is a comment offensive (HateBR), is a tweet toxic (ToLD-Br)? See docs/tasks.md."""

import hashlib

from flexqwen.evaluation.finetuning.text_classification import Example, classify, read_csv
from flexqwen.evaluation.tasks import Task

TEST_SHARE, DEV_SHARE = 0.20, 0.16


def read_hatebr() -> dict[str, list[Example]]:
    """The examples of `train`, `dev` and `test`, in the file's order, half of each offensive."""
    rows = read_csv("hatebr/HateBR.csv")
    examples = [Example(row["id"], (row["comentario"],), int(row["label_final"])) for row in rows]
    split_of = {}
    for label in (0, 1):
        ids = [example.id for example in examples if example.label == label]
        ids.sort(key=lambda id: hashlib.sha256(f"hatebr-{id}".encode()).digest())
        test, dev = round(TEST_SHARE * len(ids)), round(DEV_SHARE * len(ids))
        split_of |= {id: "test" if n < test else "dev" if n < test + dev else "train" for n, id in enumerate(ids)}
    return {split: [e for e in examples if split_of[e.id] == split] for split in ("train", "dev", "test")}


def read_toldbr() -> dict[str, list[Example]]:
    """The examples of `train`, `dev` and `test`; those of test that do not stand in train say so in their subsets."""
    splits = {}
    for split in ("train", "validation", "test"):
        rows = enumerate(read_csv(f"toldbr/ptbr_{split}_1annotator.csv"))
        splits[split] = [Example(f"{split}-{number}", (row["text"],), int(row["toxic"])) for number, row in rows]
    seen = {example.texts for example in splits["train"]}
    leaked = sum(example.texts in seen for example in splits["test"])
    clean = frozenset([f"without the {leaked} leaked texts"] if leaked else [])
    test = [Example(e.id, e.texts, e.label, frozenset() if e.texts in seen else clean) for e in splits["test"]]
    return {"train": splits["train"], "dev": splits["validation"], "test": test}


HATEBR = Task(
    "hatebr",
    2,
    fine_tune=lambda folder, context: classify(HATEBR, folder, read_hatebr(), context, 4),
    sources="hatebr",
)
TOLDBR = Task(
    "toldbr",
    2,
    fine_tune=lambda folder, context: classify(TOLDBR, folder, read_toldbr(), context, 3),
    sources="toldbr",
)
