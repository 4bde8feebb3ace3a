"""How well a model predicts the sentences of the UD treebanks' test sets, as `bits_per_byte`."""

from flexqwen.evaluation.tasks import Context, Item, Task
from flexqwen.evaluation.tasks.bits_per_byte import predict_texts
from flexqwen.evaluation.treebanks import read_sentences

TREEBANKS = (
    "ud_bosque/pt_bosque-ud-test.conllu",
    "ud_porttinari/pt_porttinari-ud-test.conllu",
    "ud_pud/pt_pud-ud-test.conllu",
)


def load(context: Context) -> list[Item]:
    """Every sentence is a document."""
    return [Item(sentence.id, sentence.text) for name in TREEBANKS for sentence in read_sentences(name)]


TASK = Task("bits_per_byte_ud", 1, load, predict_texts, modes=("causal", "masked"))
