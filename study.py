"""Runs a study, one grid of strategies, splits and seeds, and writes its report.

python study.py run configs/study-cpu.yaml       # makes the cells that are not made yet; goes on where it was stopped
python study.py status configs/study-cpu.yaml
python study.py report configs/study-cpu.yaml [--check]
python study.py merge configs/study-cpu.yaml <results folder of another machine> ...
"""

from flexqwen import study, study_report
from flexqwen.cli import ArgumentParser, InputError, command


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="study.py", description=__doc__.splitlines()[0])
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
    read = study.read(args.config)
    if args.command == "run":
        if args.workers < 1:
            raise InputError(f"--workers is {args.workers}; it must be at least 1")
        study.run(read, args.part, args.workers)
    elif args.command == "status":
        print(study.status(read))
    elif args.command == "merge":
        print(f"{study.merge(read, args.folders)} new cells in {read.results / 'cells'}")
    elif args.check:
        study_report.check(read)
        print(f"{read.results / 'README.md'} is what its result files give")
    else:
        for path in study_report.write(read):
            print(path)


if __name__ == "__main__":
    main()
