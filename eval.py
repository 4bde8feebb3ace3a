"""Evaluates a checkpoint: results.json, items.json, a table, figures; or compares two evaluations.

python eval.py --model runs/quickstart/hybrid-shift-256/best [--tasks minimal_pairs,wsc_pt] [--modes causal,masked]
python eval.py --compare <results of A> <results of B>
"""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flexqwen.cli import ArgumentParser, InputError, command
from flexqwen.data import overlap
from flexqwen.data.texts import dataset_digest
from flexqwen.evaluation import figures, likelihood, results, sources
from flexqwen.evaluation.finetuning import Settings
from flexqwen.evaluation.likelihood import MODES, Scorer
from flexqwen.evaluation.results import Result, check_unchanged, model_digests
from flexqwen.evaluation.tasks import FINE_TUNED, ON_THE_HUB, TASKS
from flexqwen.evaluation.tasks.item import Context, Item
from flexqwen.files import atomic_write, read_json, remove_path, versions, write_json


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="eval.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint: FlexQwen, or a causal or masked model of transformers")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="folders of two results (or of checkpoints)")
    names = ", ".join([*TASKS, *FINE_TUNED])
    parser.add_argument("--tasks", default="bits_per_byte", help=f"comma-separated, or all: {names}")
    parser.add_argument("--modes", help=f"comma-separated, of {', '.join(MODES)}; by default all that the model has")
    parser.add_argument(
        "--within_word", action="store_true", help="masked scoring: all tokens of a word masked together"
    )
    parser.add_argument("--dataset", default="carolina_originality", help="folder made by carolina_originality.py")
    parser.add_argument("--split", default="test", help="split of its heldout config")
    parser.add_argument("--documents", type=int, default=500, help="documents of it that are scored, at most")
    parser.add_argument("--exclude_seen", action="store_true", help="leave out items of which a 13-gram was trained on")
    parser.add_argument("--limit", type=int, help="items of each task, at most; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tuned tasks: runs, with seeds 0, 1, ...")
    parser.add_argument(
        "--learning_rates",
        type=float,
        nargs="+",
        default=list(Settings.learning_rates),
        help="fine-tuned tasks: the best on the development set is kept",
    )
    parser.add_argument("--num_train_epochs", type=float, help="fine-tuned tasks: by default the task's own number")
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the code that a model brings along, if it is no FlexQwen",
    )
    parser.add_argument("--output", help="folder to write; by default eval-<checkpoint> beside the checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace results made otherwise")
    args = parser.parse_args(argv)
    if (args.model is None) == (args.compare is None):
        raise InputError("pass either --model or --compare")
    if args.compare:
        compare(*(results_folder(folder) for folder in args.compare), args.output)
    else:
        run(args)


def run(args) -> None:
    """Evaluates one checkpoint, or says that this was done already."""
    for name in ("documents", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    tasks = [*TASKS, *FINE_TUNED] if args.tasks == "all" else args.tasks.split(",")
    if unknown := set(tasks) - set(TASKS) - set(FINE_TUNED):
        raise InputError(f"unknown task {unknown.pop()!r}; there are: {', '.join([*TASKS, *FINE_TUNED])}")
    if args.modes and (unknown := set(args.modes.split(",")) - set(MODES)):
        raise InputError(f"unknown mode {unknown.pop()!r}; allowed: {', '.join(MODES)}")
    digests = model_digests(args.model)  # before it is loaded: training may go on, and replace it
    scorer = likelihood.load(args.model, trust_remote_code=args.trust_remote_code)
    modes = args.modes.split(",") if args.modes else list(scorer.modes)
    if missing := [mode for mode in modes if mode not in scorer.modes]:
        raise InputError(f"{args.model} is not scored in mode {missing[0]!r}; it has: {', '.join(scorer.modes)}")
    has_dataset = (Path(args.dataset) / "manifest.json").is_file()
    if not has_dataset and ("bits_per_byte" in tasks or args.exclude_seen):
        dataset_digest(args.dataset)  # raises
    context = Context(args.dataset, args.split, args.documents, args.within_word, args.limit)
    made_by = {
        "model": digests or {"repository": args.model, "commit": getattr(scorer.model.config, "_commit_hash", None)},
        "dataset_digest": dataset_digest(args.dataset) if has_dataset else None,
        "tasks": {name: (TASKS.get(name) or importlib.import_module(FINE_TUNED[name])).VERSION for name in tasks},
        "modes": modes,
        "exclude_seen": args.exclude_seen,
        **{name: getattr(args, name) for name in ("split", "documents", "within_word", "limit")},
        "versions": versions("torch", "transformers", "tokenizers", "numpy", "datasets"),
    }
    if args.trust_remote_code:  # it may be other code than transformers' own
        made_by["trust_remote_code"] = True
    if set(tasks) & set(FINE_TUNED):
        made_by |= {name: getattr(args, name) for name in ("seeds", "learning_rates", "num_train_epochs")}
    folder = Path(args.output) if args.output else default_output(args.model)
    earlier = read_json(folder / results.RESULTS)
    if earlier and earlier.get("made_by") == made_by:
        print(f"evaluation: {folder} is already there, of the same checkpoint, data and settings; reused")
        _, rows = results.read_results(folder)
    elif earlier and not args.overwrite:
        raise InputError(f"{folder} holds results made otherwise; pass --overwrite or another --output")
    else:
        rows, notes = evaluate(args, scorer, tasks, modes, context, has_dataset, folder / "unfinished", made_by)
        if not rows:
            raise InputError("no results: " + ("; ".join(notes) or "none of the tasks has one of the modes"))
        results.write_results(folder, {"model": args.model, "made_by": made_by, "notes": notes}, rows)
        remove_path(folder / "unfinished")
    with atomic_write(folder / "results.md") as aside:
        aside.write_text(results.table(rows) + "\n", encoding="utf-8")
    drawn = figures.evaluation(rows, folder)
    print(held_out_table(rows) if set(tasks) == {"bits_per_byte"} else results.table(rows))
    print(f"results: {folder / results.RESULTS}\nfigures: {', '.join(str(path) for path in drawn)}")


def evaluate(
    args,
    scorer: Scorer,
    tasks: list[str],
    modes: list[str],
    context: Context,
    has_dataset: bool,
    unfinished: Path,
    made_by: dict,
) -> tuple[list[Result], list[str]]:
    """All results, and notes on what was left out; those of each finished task are kept in `unfinished` meanwhile."""
    notes, items = [], {}
    for name in (name for name in tasks if name in TASKS):
        try:
            items[name] = TASKS[name].load(context)
        except InputError as error:
            if name not in ON_THE_HUB or args.tasks != "all":
                raise
            notes.append(f"{name} left out: {error}")
    shares = seen(items, context.dataset) if has_dataset else {}
    if not has_dataset:
        notes.append(f"overlap with training is not known: no dataset in {context.dataset}")
    rows = []
    for name, loaded in items.items():
        kept = [item for item in loaded if not (args.exclude_seen and shares[name][item.id] > 0)]
        if not kept:
            notes.append(f"{name} left out: a 13-gram of every item was trained on")
            continue
        share = shares[name] if has_dataset else None
        make = functools.partial(score, name, scorer, kept, modes, context, share, len(loaded) - len(kept))
        rows += once(unfinished / name, made_by, args.model, make)
    for name in (name for name in tasks if name in FINE_TUNED):
        module = importlib.import_module(FINE_TUNED[name])
        settings = Settings(
            seeds=tuple(range(args.seeds)),
            learning_rates=tuple(args.learning_rates),
            num_train_epochs=args.num_train_epochs,
            limit=args.limit,
            dataset=args.dataset if has_dataset else None,
            exclude_seen=args.exclude_seen,
            trust_remote_code=args.trust_remote_code,
        )
        data = sources.folder(getattr(module, "FOLDER", name))
        make = functools.partial(module.run, args.model, data, settings)
        rows += once(unfinished / name, made_by, args.model, make)
    for note in notes:
        print(f"note: {note}")
    return rows, notes


def score(
    name: str,
    scorer: Scorer,
    items: list[Item],
    modes: list[str],
    context: Context,
    shares: dict[str, float] | None,
    excluded: int,
) -> list[Result]:
    """A task's results in every mode, with what the training splits hold of its items where that is known."""
    found = [result for mode in modes for result in TASKS[name].evaluate(scorer, items, mode, context)]
    for result in found if shares is not None else ():
        seen_of = np.array([shares[item] for item in result.item_ids])
        result.details |= overlap.details(seen_of, excluded)
    return found


def once(folder: Path, made_by: dict, model: str, make: Callable[[], list[Result]]) -> list[Result]:
    """What `make()` gives; or what it gave, where the same evaluation was interrupted after it.

    Raises:
        InputError: the model's files are not those of `made_by` any more.
    """
    if (read_json(folder / results.RESULTS) or {}).get("made_by") == made_by:
        return results.read_results(folder)[1]
    rows = make()
    check_unchanged(model, {} if "repository" in made_by["model"] else made_by["model"])
    results.write_results(folder, {"made_by": made_by}, rows)
    return rows


def seen(items: dict[str, list[Item]], dataset: str) -> dict[str, dict[str, float]]:
    """For each task and item, the share of its 13-grams in the training splits (NaN: under 13 words)."""
    texts = [item.text for loaded in items.values() for item in loaded]
    shares = iter(overlap.seen_shares(texts, dataset).tolist())
    return {name: {item.id: next(shares) for item in loaded} for name, loaded in items.items()}


def default_output(model: str) -> Path:
    path = Path(model)
    return (path.parent if path.is_dir() else Path("runs")) / f"eval-{path.name}"


def results_folder(path: str) -> Path:
    """A results folder itself, or that of the checkpoint in `path`."""
    folder = Path(path)
    return folder if (folder / results.RESULTS).is_file() or not folder.is_dir() else default_output(path)


def compare(first: Path, second: Path, output: str | None) -> None:
    """Prints the paired differences of two evaluations, and writes them where `output` says."""
    sides = [results.read_results(folder)[1] for folder in (first, second)]
    differences, left = results.compare(*sides)
    if not differences:
        raise InputError(f"{first} and {second} have no figure in common; evaluate both on the same tasks and modes")
    print(f"A: {first}\nB: {second}\n{results.comparison_table(differences)}")
    if all(row.verdict == "no difference" for row in differences):
        print("no difference: every interval holds 0")
    if left:
        names = sorted({" ".join(map(str, key)) for key in left})
        print(f"not compared, since they are no mean of items that both sides have: {', '.join(names)}")
    if output:
        write_json(Path(output) / "comparison.json", [vars(row) | {"verdict": row.verdict} for row in differences])
        figures.comparison(differences, Path(output) / "comparison.png")
        print(f"comparison: {Path(output) / 'comparison.json'}\nfigure:     {Path(output) / 'comparison.png'}")


def held_out_table(rows: list[Result]) -> str:
    """Both metrics of held-out text side by side, as a Markdown table."""
    lines = [
        "| held-out text | documents | tokens | loss (nats/token) | unigram | bits per byte | unigram |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for loss, bits in zip(rows[::2], rows[1::2], strict=True):
        cells = [
            f"{row.value:.3f} [{row.interval[0]:.3f}, {row.interval[1]:.3f}] | {row.baseline:.3f}"
            for row in (loss, bits)
        ]
        lines.append(f"| {loss.subset}, {loss.mode} | {loss.n:,} | {loss.details['tokens']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
