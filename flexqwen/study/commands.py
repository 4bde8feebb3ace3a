"""Runs a study, one grid of strategies, splits and seeds, and writes its report.

python -m flexqwen study run configs/study-cpu.yaml  # makes the cells that are not made yet
python -m flexqwen study status configs/study-cpu.yaml
python -m flexqwen study report configs/study-cpu.yaml [--check]
python -m flexqwen study merge configs/study-cpu.yaml <results folder of another machine> ...
"""

from flexqwen.cli import ArgumentParser, InputError, command
from flexqwen.study import grid, report


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m flexqwen study", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, parser_class=ArgumentParser)
    texts = {
        "run": "make the cells that are not made yet",
        "status": "show what is made, with the figures so far",
        "report": "write results/<study>/README.md, its figures, and the table of the front page",
        "merge": "take over cells that were made on other machines",
    }
    parsers = {name: commands.add_parser(name, help=text, description=text) for name, text in texts.items()}
    for each in parsers.values():
        each.add_argument("config", help="such as configs/study-cpu.yaml")
    parsers["run"].add_argument("--part", help="i/n: only the i-th of n parts of the cells")
    parsers["run"].add_argument("--workers", type=int, default=1, help="cells at a time, which share the cores")
    parsers["report"].add_argument("--check", action="store_true", help="write nothing; fail if what is there differs")
    parsers["merge"].add_argument("folders", nargs="+", help="results folders of the same study")
    args = parser.parse_args(argv)
    read = grid.read(args.config)
    if args.command == "run":
        if args.workers < 1:
            raise InputError(f"--workers is {args.workers}; it must be at least 1")
        grid.run(read, args.part, args.workers)
    elif args.command == "status":
        print(grid.status(read))
    elif args.command == "merge":
        print(f"{grid.merge(read, args.folders)} new cells in {read.results / 'cells'}")
    elif args.check:
        report.check(read)
        print(f"{read.results / 'README.md'} is what its result files give")
    else:
        for path in report.write(read):
            print(path)
