"""HateBR: is an Instagram comment offensive? Vargas et al., LREC 2022 (github.com/franciellevargas/HateBR).

7,000 comments, half of them offensive (`label_final`), published without a split. The one here has the sizes of the
Hub's `ruanchaves/hatebr` (4,480 / 1,120 / 1,400), half of each offensive: the comments of each class are ordered by the
SHA-256 of "hatebr-<id>"; the first go to test, the next to dev, the rest to train.
"""

import hashlib

from flexqwen.evaluation.finetuning.text_classification import Example, classify, read_csv
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Context, Task

NUM_TRAIN_EPOCHS = 4
TEST_SHARE, DEV_SHARE = 0.20, 0.16


def read() -> dict[str, list[Example]]:
    """The examples of `train`, `dev` and `test`, in the file's order."""
    rows = read_csv("hatebr/HateBR.csv")
    examples = [Example(row["id"], (row["comentario"],), int(row["label_final"])) for row in rows]
    split_of = {}
    for label in (0, 1):
        ids = [example.id for example in examples if example.label == label]
        ids.sort(key=lambda id: hashlib.sha256(f"hatebr-{id}".encode()).digest())
        test, dev = round(TEST_SHARE * len(ids)), round(DEV_SHARE * len(ids))
        split_of |= {id: "test" if n < test else "dev" if n < test + dev else "train" for n, id in enumerate(ids)}
    return {split: [e for e in examples if split_of[e.id] == split] for split in ("train", "dev", "test")}


def run(model_folder: str, context: Context) -> list[Result]:
    """Accuracy and macro F1."""
    return classify(HATEBR, model_folder, read(), context, NUM_TRAIN_EPOCHS)


HATEBR = Task("hatebr", 2, fine_tune=run)
