"""ToLD-Br: is a tweet toxic, for at least one of its three annotators? Leite et al., AACL 2020.

The authors' own split (github.com/JAugusto97/ToLD-Br, `1annotator.zip`): 16,800 / 2,100 / 2,100. 30 test texts stand
verbatim in train, 10 of them with the other label, so every figure is also given without them. 18 validation texts
stand in train too, which can touch only the choice of the learning rate.
"""

from flexqwen.evaluation.finetuning.text_classification import Example, classify, read_csv
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Context, Task

NUM_TRAIN_EPOCHS = 3
FILES = {split: f"toldbr/ptbr_{split}_1annotator.csv" for split in ("train", "validation", "test")}


def read() -> dict[str, list[Example]]:
    """The examples of `train`, `dev` and `test`; those of test that do not stand in train say so in their subsets."""
    splits = {}
    for split, name in FILES.items():
        rows = enumerate(read_csv(name))
        splits[split] = [Example(f"{split}-{number}", (row["text"],), int(row["toxic"])) for number, row in rows]
    seen = {example.texts for example in splits["train"]}
    leaked = sum(example.texts in seen for example in splits["test"])
    clean = frozenset([f"without the {leaked} leaked texts"] if leaked else [])
    test = [Example(e.id, e.texts, e.label, frozenset() if e.texts in seen else clean) for e in splits["test"]]
    return {"train": splits["train"], "dev": splits["validation"], "test": test}


def run(model_folder: str, context: Context) -> list[Result]:
    """Accuracy and macro F1, of all test texts and without the leaked ones."""
    return classify(TOLDBR, model_folder, read(), context, NUM_TRAIN_EPOCHS)


TOLDBR = Task("toldbr", 2, fine_tune=run)
