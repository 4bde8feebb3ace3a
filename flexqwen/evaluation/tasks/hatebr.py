"""HateBR: is an Instagram comment offensive? Vargas et al., LREC 2022 (github.com/franciellevargas/HateBR).

7,000 comments, half of them offensive (`label_final`), published without a split. The one here has the sizes of the
Hub's `ruanchaves/hatebr` (4,480 / 1,120 / 1,400), half of each offensive: the comments of each class are ordered by the
SHA-256 of "hatebr-<id>"; the first go to test, the next to dev, the rest to train.
"""

import hashlib
from pathlib import Path

from flexqwen.cli import InputError
from flexqwen.evaluation.finetuning import Settings
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Task
from flexqwen.evaluation.tasks.data_files import data_file, read_csv
from flexqwen.evaluation.tasks.text_classification import Example, classify

VERSION = 1
NUM_TRAIN_EPOCHS = 4
TEST_SHARE, DEV_SHARE = 0.20, 0.16


def read(folder: Path) -> dict[str, list[Example]]:
    """The examples of `train`, `dev` and `test`, in the file's order.

    Raises:
        InputError: no such file, or a label that is neither 0 nor 1.
    """
    path = data_file(folder, "HateBR.csv")
    by_class: dict[str, list[Example]] = {"0": [], "1": []}
    order = {}
    for number, row in enumerate(read_csv(path, "id", "comentario", "label_final")):
        if row["label_final"] not in by_class:
            raise InputError(f"{path}: comment {row['id']} has label_final {row['label_final']!r}; it must be 0 or 1")
        by_class[row["label_final"]].append(Example(row["id"], (row["comentario"],), int(row["label_final"])))
        order[row["id"]] = number
    splits: dict[str, list[Example]] = {"train": [], "dev": [], "test": []}
    for examples in by_class.values():
        examples.sort(key=lambda example: hashlib.sha256(f"hatebr-{example.id}".encode()).digest())
        test = round(TEST_SHARE * len(examples))
        dev = test + round(DEV_SHARE * len(examples))
        splits["test"] += examples[:test]
        splits["dev"] += examples[test:dev]
        splits["train"] += examples[dev:]
    return {split: sorted(examples, key=lambda example: order[example.id]) for split, examples in splits.items()}


def run(model_folder: str, folder: Path, settings: Settings) -> list[Result]:
    """Accuracy and macro F1."""
    splits = read(folder)
    return classify(
        "hatebr", VERSION, model_folder, **splits, classes=2, settings=settings, num_train_epochs=NUM_TRAIN_EPOCHS
    )


TASK = Task("hatebr", VERSION, fine_tune=run)
