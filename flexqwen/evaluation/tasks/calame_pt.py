"""CALAME-PT (Lopes, Magalhães and Semedo, 2024), from the Hub: does the last word of a passage come to mind?

A passage is right if each token of its last word is the likeliest. Masked: with all tokens of the word masked.
"""

from flexqwen.evaluation import sources
from flexqwen.evaluation.likelihood import Request, Scorer
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Context, Item, Task


def load(context: Context) -> list[Item]:
    """The passages, as `read_hub_rows` gives them."""
    rows, commit = sources.read_hub_rows("NOVA-vision-language/calame-pt", "all", "train", ("sentence", "last_word"))
    items = []
    for number, row in enumerate(rows):
        start = row["sentence"].rstrip()
        request = Request(f"{start} {row['last_word']}", len(start))
        items.append(Item(f"{number}", request.text, [[request]], commit=commit))
    return items


def score(task: Task, scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """Accuracy, beside that of a model that guesses no word: chance is next to nothing."""
    requests = tuple(item.questions[0][0] for item in items)
    _, greedy = scorer.run(requests, mode == "masked", within_word=True, progress=task.name)
    fields = {"mode": mode, "metric": "accuracy", "baseline": 0.0, "baseline_name": "no word guessed"}
    return [task.mean_result(items, greedy, **fields)]


CALAME_PT = Task("calame_pt", 1, load, score, modes=("causal", "masked"))  # fused would name two words
