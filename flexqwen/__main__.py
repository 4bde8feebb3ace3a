"""`python -m flexqwen <verb>`: the commands of the library that have no script of their own."""

import importlib
import sys

from flexqwen.cli import ArgumentParser, command

VERBS = {
    "tokenizer": ("flexqwen.data.tokenizer", "train a tokenizer, or adapt a Qwen3 one"),
    "minimal_pairs": ("flexqwen.evaluation.pair_generation", "make the minimal pairs from treebanks"),
    "export": ("flexqwen.hub.export", "write a checkpoint as a plain Qwen3, as GGUF or as ONNX"),
    "publish": ("flexqwen.hub.publisher", "publish a run and its results on the Hugging Face Hub"),
    "doctor": ("flexqwen.training.doctor", "say what runs here and how fast, and what a config would cost on a GPU"),
    "study": ("flexqwen.study.commands", "run a grid of training runs, and report on it"),
}


@command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = ArgumentParser(prog="python -m flexqwen", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=ArgumentParser)
    for verb, (_, text) in VERBS.items():
        verbs.add_parser(verb, help=text, add_help=False)
    verb = parser.parse_args(argv[:1]).verb
    importlib.import_module(VERBS[verb][0]).main(argv[1:])


if __name__ == "__main__":
    main()
