"""Carolina Originality: from Corpus Carolina's shards to a dataset of originality splits.

python carolina_originality.py sample sample_corpus
python carolina_originality.py build --corpus sample_corpus
python carolina_originality.py inspect carolina_originality
python carolina_originality.py push --repo <org>/carolina_originality
"""

import os
from pathlib import Path

from flexqwen.cli import ArgumentParser, InputError, command, path
from flexqwen.data.build import Parameters, build, read_manifest
from flexqwen.data.corpus import open_corpus
from flexqwen.data.inspection import (
    dataset_by_taxonomy,
    describe_corpus,
    describe_dataset,
    describe_document,
    is_dataset,
)
from flexqwen.data.sample import generate, grammar
from flexqwen.files import atomic_write, digest, file_digest, is_empty, read_json, versions, write_json
from flexqwen.hub.dataset import publish
from flexqwen.hub.repository import Repository
from flexqwen.parallel import Pool


def make_sample(args) -> None:
    if args.documents < 1:
        raise InputError(f"--documents {args.documents}: give 1 or more")
    made = {"documents": args.documents, "seed": args.seed, **versions()}
    made["code"] = digest([file_digest(module.__file__) for module in (grammar, generate)])
    stamp = args.folder / "sample.json"
    if args.folder.exists() and not is_empty(args.folder):
        found = read_json(stamp)
        if found == made:
            print(f"{args.folder}: already there, reused")
            return
        if not (isinstance(found, dict) and found.keys() == made.keys()):
            raise InputError(f"{args.folder}: holds no sample corpus; name another folder, or remove it yourself")
        if not args.overwrite:
            raise InputError(f"{args.folder}: is a sample corpus made otherwise; remove it, or give --overwrite")
    try:
        with atomic_write(args.folder) as partial:
            partial.mkdir()
            generate.write_sample(partial, args.documents, args.seed)
            write_json(partial / "sample.json", made)
    except OSError as error:
        raise InputError(f"{args.folder}: cannot be written ({error.strerror or error})") from error
    print(f"{args.folder}: a sample corpus of {args.documents:,} documents")


def make_dataset(args) -> None:
    if args.documents is not None and args.documents < 1:
        raise InputError(f"--documents {args.documents}: give 1 or more")
    if args.workers < 1:
        raise InputError(f"--workers {args.workers}: give 1 or more")
    if args.memory < 0.25:
        raise InputError(f"--memory {args.memory}: give 0.25 (GiB) or more")
    parameters = Parameters(args.seed, args.documents, args.measure, args.skip_bad_shards)
    memory = int(args.memory * (1 << 30))
    manifest = build(args.corpus, args.output, parameters, args.workers, memory, args.overwrite)
    print(f"{args.output}: {'already built from this, reused' if manifest.get('reused') else 'built'}")
    print(describe_dataset(manifest))
    print(f"card {args.output / 'README.md'}, manifest {args.output / 'manifest.json'}")


def inspect(args) -> None:
    with Pool(args.workers) as pool:
        if args.id:
            print(describe_document(args.folder, args.id, pool))
        elif is_dataset(args.folder):
            print(describe_dataset(read_manifest(args.folder)))
            print(dataset_by_taxonomy(args.folder))
        else:
            print(describe_corpus(open_corpus(args.folder), pool))


def push(args) -> None:
    repository = Repository(args.repo, "dataset", private=args.private or None)
    tag, commit, tagged = publish(args.folder, repository, args.tag)
    stays = f"; the tag {tag} stays at {tagged}, of the same build" if tagged != commit else ""
    print(f"{repository.url}: version {tag}, commit {commit}{stays}")


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="carolina_originality.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    sample_ = commands.add_parser("sample", help="write a small generated corpus in Corpus Carolina's format")
    sample_.add_argument("folder", type=path)
    sample_.add_argument("--documents", type=int, default=3000)
    sample_.add_argument("--seed", type=int, default=0)
    sample_.add_argument("--overwrite", action="store_true", help="replace another sample corpus")
    sample_.set_defaults(run=make_sample)

    build_ = commands.add_parser("build", help="build the dataset from a corpus")
    build_.add_argument("--corpus", type=path, required=True, help="the folder that holds Corpus Carolina's corpus/")
    build_.add_argument("--output", type=path, default=Path("carolina_originality"))
    build_.add_argument(
        "--documents",
        type=int,
        help="use only so many documents, a random sample of all; every shard is read all the same",
    )
    build_.add_argument("--seed", type=int, default=0)
    build_.add_argument(
        "--measure", choices=("header", "ngram"), default="header", help="originality that makes the splits"
    )
    build_.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    build_.add_argument("--memory", type=float, default=2, help="GiB that scoring may take, all processes together")
    build_.add_argument(
        "--skip_bad_shards", action="store_true", help="leave bad shards out and list them in the manifest"
    )
    build_.add_argument("--overwrite", action="store_true", help="replace a dataset made from other inputs")
    build_.set_defaults(run=make_dataset)

    inspect_ = commands.add_parser("inspect", help="show a corpus or a built dataset")
    inspect_.add_argument("folder", type=path)
    inspect_.add_argument("--id", help="show where the copied passages of this document are, and who else holds them")
    inspect_.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    inspect_.set_defaults(run=inspect)

    push_ = commands.add_parser("push", help="publish a built dataset on the Hugging Face Hub")
    push_.add_argument("folder", type=path, nargs="?", default=Path("carolina_originality"))
    push_.add_argument("--repo", required=True, help="<user or organisation>/carolina_originality")
    push_.add_argument("--tag", help="version; made from the build's inputs by default")
    push_.add_argument("--private", action="store_true", help="make the repository private, if it is made now")
    push_.set_defaults(run=push)

    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
