"""Carolina Originality: from Corpus Carolina's shards to a dataset of originality splits.

python carolina_originality.py sample sample_corpus
python carolina_originality.py build --corpus sample_corpus
"""

import json
import os
from pathlib import Path

from flexqwen.cli import ArgumentParser, InputError, command
from flexqwen.dataset import Parameters, build, summary
from flexqwen.outputs import digest, file_digest, versions, write_json, written_aside


def make_sample(args) -> None:
    from flexqwen import portuguese, sample

    if args.documents < 1:
        raise InputError(f"--documents {args.documents}: give 1 or more")
    made = {"documents": args.documents, "seed": args.seed, **versions()}
    made["code"] = digest([file_digest(module.__file__) for module in (portuguese, sample)])
    stamp = args.folder / "sample.json"
    if args.folder.exists():
        if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == made:
            print(f"{args.folder}: already there, reused")
            return
        if not args.overwrite:
            raise InputError(f"{args.folder}: exists and was made otherwise; remove it, or give --overwrite")
    with written_aside(args.folder) as partial:
        partial.mkdir()
        sample.write_sample(partial, args.documents, args.seed)
        write_json(partial / "sample.json", made)
    print(f"{args.folder}: a sample corpus of {args.documents:,} documents")


def make_dataset(args) -> None:
    parameters = Parameters(args.seed, args.documents, args.measure, args.skip_bad_shards)
    manifest = build(args.corpus, args.output, parameters, args.workers, int(args.memory * (1 << 30)), args.overwrite)
    shards = manifest["shards"]
    print(
        f"{args.output}: {'already built from this, reused' if manifest.get('reused') else 'built'}; "
        f"{len(shards['used'])} shards, {len(shards['absent'])} listed ones absent, {len(shards['bad'])} bad; "
        f"{manifest['documents']['kept']:,} documents kept of {manifest['documents']['read']:,}"
    )
    for reason, count in manifest["documents"]["dropped"].items():
        print(f"  dropped {count:,}: {reason}")
    print(summary(manifest))
    print(f"card {args.output / 'README.md'}, manifest {args.output / 'manifest.json'}")


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="carolina_originality.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    sample = commands.add_parser("sample", help="write a small generated corpus in Corpus Carolina's format")
    sample.add_argument("folder", type=Path)
    sample.add_argument("--documents", type=int, default=3000)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    sample.set_defaults(run=make_sample)

    build_ = commands.add_parser("build", help="build the dataset from a corpus")
    build_.add_argument("--corpus", type=Path, required=True, help="the folder that holds Corpus Carolina's corpus/")
    build_.add_argument("--output", type=Path, default=Path("carolina_originality"))
    build_.add_argument("--documents", type=int, help="use only so many documents, a random sample of all shards")
    build_.add_argument("--seed", type=int, default=0)
    build_.add_argument(
        "--measure", choices=("header", "ngram"), default="header", help="originality that makes the splits"
    )
    build_.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    build_.add_argument("--memory", type=float, default=2, help="GiB that scoring may take, all processes together")
    build_.add_argument(
        "--skip-bad-shards", action="store_true", help="leave bad shards out and list them in the manifest"
    )
    build_.add_argument("--overwrite", action="store_true", help="replace a dataset made from other inputs")
    build_.set_defaults(run=make_dataset)

    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    main()
