"""How well a model predicts the sentences of the UD treebanks' test sets, as `bits_per_byte`."""

from flexqwen.evaluation.likelihood import Scorer
from flexqwen.evaluation.pair_generation import read_sentences
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import bits_per_byte
from flexqwen.evaluation.tasks.item import Context, Item, some

VERSION = 1
TREEBANKS = (
    "ud_bosque/pt_bosque-ud-test.conllu",
    "ud_porttinari/pt_porttinari-ud-test.conllu",
    "ud_pud/pt_pud-ud-test.conllu",
)


def load(context: Context) -> list[Item]:
    """Every sentence is a document."""
    sentences = [sentence for name in TREEBANKS for sentence in read_sentences(name)]
    return some([Item(sentence.id, sentence.text) for sentence in sentences], context.limit)


def evaluate(scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """Nats per predicted token and bits per byte."""
    return bits_per_byte.figures("bits_per_byte_ud", scorer, items, mode, context)
