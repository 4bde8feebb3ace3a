"""Evaluates a checkpoint: results.json, items.json, a table, figures; or compares evaluations.

python eval.py --model runs/quickstart/hybrid-shift-256/best [--tasks minimal_pairs,wsc_pt] [--modes causal,masked]
python eval.py --compare <results of A> <results of B> [...]
"""

from dataclasses import fields
from pathlib import Path
from string import ascii_uppercase

from flexqwen.cli import ArgumentParser, InputError, command, existing
from flexqwen.evaluation import MODES
from flexqwen.evaluation.options import Options
from flexqwen.evaluation.tasks import NAMES


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="eval.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", help="a checkpoint: FlexQwen, or a causal or masked model of transformers")
    add("--compare", nargs="+", type=existing, metavar="FOLDER", help="results (or checkpoints): the first with others")
    which = f"comma-separated, or all: {', '.join(NAMES)}; all but bits_per_byte and memorisation are in Portuguese"
    add("--tasks", help=f"{which}; or files of your own (docs/evaluation.md)")
    add("--modes", help=f"comma-separated, of {', '.join(MODES)}; by default all that the model has")
    add("--within_word", action="store_true", help="masked scoring: all tokens of a word masked together")
    add("--mask_groups", type=int, help="masked scoring: so many copies of a text; by default one for each token")
    add("--dataset", help="folder made by carolina_originality.py")
    add("--split", help="split of its heldout config")
    add("--documents", type=int, help="documents of it that are scored, at most")
    add("--exclude_seen", action="store_true", help="leave out items that share a 13-gram with the training splits")
    add("--limit", type=int, help="items of each task, at most; all by default")
    add("--seeds", type=int, help="fine-tuned tasks: runs, with seeds 0, 1, ...")
    add("--learning_rates", type=float, nargs="+", help="fine-tuned tasks: the best on the development set is kept")
    add("--num_train_epochs", type=float, help="fine-tuned tasks: by default the task's own number")
    add("--trust_remote_code", action="store_true", help="run the code that a model brings along, if it is no FlexQwen")
    add("--output", help="folder to write; by default eval-<checkpoint> in the checkpoint's run, or in runs/")
    add("--overwrite", action="store_true", help="measure again what is there; replace results of other weights")
    defaults = {option.name: option.default for option in fields(Options) if option.name != "model"}
    parser.set_defaults(**defaults | {"learning_rates": list(Options.learning_rates)})
    args = parser.parse_args(argv)
    if (args.model is None) == (args.compare is None):
        raise InputError("pass either --model or --compare")
    if args.compare:
        return print_comparison(args.compare, args.output)
    del args.compare
    return print_evaluation(Options(**vars(args)))


def print_evaluation(options: Options) -> None:
    """Evaluates a checkpoint, prints its results and draws them."""
    from flexqwen.remote import check_place

    check_place(options.model)  # before what takes long to import
    from flexqwen.evaluation.figures import draw_evaluation
    from flexqwen.evaluation.results import RESULTS, format_results, split_breakdowns
    from flexqwen.evaluation.run_tasks import caution_dataset, evaluate
    from flexqwen.files import write_text

    caution_dataset(options)
    results = evaluate(options)
    write_text(options.folder / "results.md", format_results(results) + "\n")
    main, breakdowns = split_breakdowns(results)
    print(format_results(main))
    drawn = draw_evaluation(results, options.folder)
    more = f" ({len(breakdowns)} more values, of parts of tasks: results.md)" * bool(breakdowns)
    print(f"results: {options.folder / RESULTS}{more}")
    if drawn:
        print(f"figures: {', '.join(map(str, drawn))}")


def print_comparison(places: list[Path], output: str | None) -> None:
    """Prints the paired differences of evaluations from the first, and writes them where `output` says."""
    from flexqwen.evaluation import comparison, figures, results, run_tasks

    if len(places) < 2:
        raise InputError("--compare needs the folders of two results or more")
    folders = [run_tasks.find_results(place) for place in places]
    differences, left = comparison.compare_folders(folders)
    print(*(f"{name}: {folder}" for name, folder in zip(ascii_uppercase, folders, strict=False)), sep="\n")
    print(comparison.format_comparison(results.split_breakdowns(differences)[0]))
    if left:
        why = "one side lacks it, or measured it otherwise, or has no number for each item"
        print(f"not compared, as {why}: {comparison.name_keys(left)}")
    if output:
        written = comparison.write_comparison(output, differences)
        figure = written.with_suffix(".png")
        figures.draw_dots(differences, figure, "difference from A, 95 % intervals (paired)")
        print(f"comparison: {written} ({len(differences)} figures)\nfigure:     {figure}")


if __name__ == "__main__":
    main()
