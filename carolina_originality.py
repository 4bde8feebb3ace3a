"""Carolina Originality: from Corpus Carolina's shards to a dataset of originality splits."""

import json
import os
import sys
from pathlib import Path

from flexqwen.cli import ArgumentParser, command, existing, path


def place(text: str) -> str:
    """argparse type of a path or an address."""
    return text if text.startswith("hf://") else str(path(text))


def run_build(args) -> None:
    from flexqwen.data.build import Parameters, build
    from flexqwen.data.card import list_cautions
    from flexqwen.data.collection import FIELDS
    from flexqwen.data.inspection import describe_dataset

    parameters = Parameters(args.seed, args.documents, args.measure, args.skip_bad_shards, args.with_all)
    columns = {field: value for field in FIELDS if (value := getattr(args, f"{field}_column"))}
    options = (args.output, parameters, args.workers, args.memory, args.overwrite, columns)
    manifest = build(args.corpus, *options)
    print(describe_dataset(manifest))
    for caution in list_cautions(manifest):
        print(f"caution: {caution}", file=sys.stderr)
    print(f"card {args.output / 'README.md'}, manifest {args.output / 'manifest.json'}")


def run_inspect(args) -> None:
    from flexqwen.data.inspection import describe_document, describe_folder
    from flexqwen.parallel import Pool

    with Pool(args.workers) as pool:
        print(describe_document(args.folder, args.id, pool) if args.id else describe_folder(args.folder, pool))


def run_trace(args) -> None:
    from flexqwen.data.trace import Index, describe_spans, read_inputs

    texts = read_inputs(args.text, args.file, args.generations)
    index = Index(args.folder, args.index, args.split, args.workers)
    for text in texts:
        found = index.trace(text, args.words)
        print(json.dumps(found, ensure_ascii=False) if args.json else describe_spans(text, found, args.words))


def run_push(args) -> None:
    from flexqwen.hub.dataset import publish
    from flexqwen.hub.repository import Repository

    repository = Repository(args.repo, "dataset", private=args.private or None)
    tag, commit, tagged = publish(args.folder, repository, args.tag)
    stays = f"; the tag {tag} stays at {tagged}, of the same build" if tagged != commit else ""
    print(f"{repository.url}: version {tag}, commit {commit}{stays}")


def run_sample(args) -> None:
    from flexqwen.data.sample.generate import make_sample

    make_sample(args.folder, args.documents, args.seed, args.overwrite)


@command
def main(argv: list[str] | None = None) -> None:
    from flexqwen.data.build import NAME
    from flexqwen.data.collection import FIELDS
    from flexqwen.data.ngrams import NGRAM

    parser = ArgumentParser(prog="carolina_originality.py", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)

    def add_verb(name: str, text: str) -> ArgumentParser:
        return verbs.add_parser(name, help=text, description=text)

    sample = add_verb("sample", "write a small generated corpus in Corpus Carolina's format")
    sample.add_argument("folder", type=path)
    sample.add_argument("--documents", type=int, default=3000)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--overwrite", action="store_true", help="replace another sample corpus")
    sample.set_defaults(run=run_sample)

    made = add_verb("build", "build the dataset from a corpus")
    made.set_defaults(run=run_build)
    add = made.add_argument
    what = "Corpus Carolina's folder; files of Parquet, .jsonl or .txt (.gz, .zst), or a folder of them; or "
    what += "hf://datasets/<org>/<name>[@<revision>][/<config>[/<split>]]"
    add("--corpus", type=place, nargs="+", required=True, help=what)
    for field in FIELDS:
        add(f"--{field}_column", help=f"column of the {field} in Parquet or .jsonl, if it is not `{field}`")
    add("--output", type=path, default=Path(NAME))
    add("--documents", type=int, help="use so many documents only, a random sample; all shards are read all the same")
    add("--seed", type=int, default=0)
    add("--measure", choices=("header", "ngram"), default="header", help="originality that makes the splits")
    add(
        "--with_all",
        action="store_true",
        help="add a config `all`: every document but the held-out ones and what has half its 13-grams there",
    )
    add("--workers", type=int, default=os.cpu_count(), help="processes")
    add("--memory", type=float, default=2, help="GiB that scoring may take, all processes together")
    add("--skip_bad_shards", action="store_true", help="leave bad shards out and list them in the manifest")
    add("--overwrite", action="store_true", help="replace one of other inputs, or with bad shards; else write its card")

    inspect = add_verb("inspect", "show a corpus or a built dataset")
    inspect.add_argument("folder", type=existing)
    inspect.add_argument("--id", help="show where the copied passages of this document are, and who else holds them")
    inspect.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    inspect.set_defaults(run=run_inspect)

    trace = add_verb("trace", "show which passages of a text a dataset or a corpus holds, and of whom")
    trace.set_defaults(run=run_trace)
    add = trace.add_argument
    add("folder", type=existing, help="a built dataset, or a local corpus")
    given = trace.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", help="the text")
    given.add_argument("--file", type=existing, help="a file with the text")
    given.add_argument("--generations", type=existing, help="JSON lines, objects with a `text` each")
    add("--words", type=int, default=NGRAM, help="length from which a passage is shown")
    add("--split", nargs="+", default=[], help="configs or <config>/<split> of the dataset to search; all by default")
    add("--index", type=path, help="where the index is kept; <folder>.trace by default")
    add("--json", action="store_true", help="a JSON object for each text, with all documents of each passage")
    add("--workers", type=int, default=os.cpu_count(), help="processes that make the index")

    push = add_verb("push", "publish a built dataset on the Hugging Face Hub")
    push.add_argument("folder", type=path, nargs="?", default=Path(NAME))
    push.add_argument("--repo", required=True, help="<user or organisation>/carolina_originality")
    push.add_argument("--tag", help="version; made from the build's inputs by default")
    push.add_argument("--private", action="store_true", help="make the repository private, if it is made now")
    push.set_defaults(run=run_push)

    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
