"""Carolina Originality: from Corpus Carolina's shards to a dataset of originality splits."""

import os
from pathlib import Path

from flexqwen.cli import ArgumentParser, command, path
from flexqwen.data.build import NAME, Parameters, build
from flexqwen.data.collection import FIELDS
from flexqwen.data.inspection import describe_dataset, describe_document, describe_folder
from flexqwen.data.sample.generate import make_sample
from flexqwen.hub.dataset import publish
from flexqwen.hub.repository import Repository
from flexqwen.parallel import Pool


def place(text: str) -> str:
    """argparse type of a path or an address."""
    return text if text.startswith("hf://") else str(path(text))


def run_build(args) -> None:
    parameters = Parameters(args.seed, args.documents, args.measure, args.skip_bad_shards)
    columns = {field: value for field in FIELDS if (value := getattr(args, f"{field}_column"))}
    options = (args.output, parameters, args.workers, args.memory, args.overwrite, columns)
    print(describe_dataset(build(args.corpus, *options)))
    print(f"card {args.output / 'README.md'}, manifest {args.output / 'manifest.json'}")


def run_inspect(args) -> None:
    with Pool(args.workers) as pool:
        print(describe_document(args.folder, args.id, pool) if args.id else describe_folder(args.folder, pool))


def run_push(args) -> None:
    repository = Repository(args.repo, "dataset", private=args.private or None)
    tag, commit, tagged = publish(args.folder, repository, args.tag)
    stays = f"; the tag {tag} stays at {tagged}, of the same build" if tagged != commit else ""
    print(f"{repository.url}: version {tag}, commit {commit}{stays}")


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="carolina_originality.py", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)

    sample = verbs.add_parser("sample", help="write a small generated corpus in Corpus Carolina's format")
    sample.add_argument("folder", type=path)
    sample.add_argument("--documents", type=int, default=3000)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--overwrite", action="store_true", help="replace another sample corpus")
    sample.set_defaults(run=lambda args: make_sample(args.folder, args.documents, args.seed, args.overwrite))

    made = verbs.add_parser("build", help="build the dataset from a corpus")
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
    add("--workers", type=int, default=os.cpu_count(), help="processes")
    add("--memory", type=float, default=2, help="GiB that scoring may take, all processes together")
    add("--skip_bad_shards", action="store_true", help="leave bad shards out and list them in the manifest")
    add("--overwrite", action="store_true", help="replace a dataset of other inputs; of the same, write the card anew")

    inspect = verbs.add_parser("inspect", help="show a corpus or a built dataset")
    inspect.add_argument("folder", type=path)
    inspect.add_argument("--id", help="show where the copied passages of this document are, and who else holds them")
    inspect.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    inspect.set_defaults(run=run_inspect)

    push = verbs.add_parser("push", help="publish a built dataset on the Hugging Face Hub")
    push.add_argument("folder", type=path, nargs="?", default=Path(NAME))
    push.add_argument("--repo", required=True, help="<user or organisation>/carolina_originality")
    push.add_argument("--tag", help="version; made from the build's inputs by default")
    push.add_argument("--private", action="store_true", help="make the repository private, if it is made now")
    push.set_defaults(run=run_push)

    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
