"""Runs a study, one grid of training runs, and writes its report."""

from flexqwen.cli import ArgumentParser, InputError, command, existing, lasting_output


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m flexqwen study", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, parser_class=ArgumentParser)
    parsers = {}
    for name, text in {
        "run": "make the cells that are not made yet",
        "status": "show which cells are finished, and how far the others are",
        "report": "write results/<study>/README.md, its figures, and its table in docs/studies.md",
    }.items():
        parsers[name] = commands.add_parser(name, help=text, description=text)
        parsers[name].add_argument("config", type=existing, help="such as configs/study-cpu.yaml")
    parsers["run"].add_argument("--workers", type=int, default=1, help="cells at a time, which share the cores")
    parsers["run"].add_argument("--seeds", type=int, nargs="+", help="only these, so that machines share a study")
    parsers["report"].add_argument("--check", action="store_true", help="write nothing; fail if what is there differs")
    args = parser.parse_args(argv)
    from flexqwen.remote import explain_failure
    from flexqwen.study import grid, report, runner

    study = grid.read(args.config)
    if args.command == "run":
        if args.workers < 1:
            raise InputError(f"--workers is {args.workers}; it must be at least 1")
        if unknown := set(args.seeds or []) - set(study.seeds):
            raise InputError(f"--seeds has {unknown.pop()}; {args.config} has {', '.join(map(str, study.seeds))}")
        with lasting_output():
            runner.run(study, args.workers, args.seeds)
        return
    with explain_failure(f"a file in {study.results} is damaged", "remove it; study run makes it again"):
        if args.command == "status":
            print(runner.format_status(study))
        elif args.check:
            report.check(study)
            print(f"{study.results / 'README.md'} is what its result files give")
        else:
            for path in report.write(study):
                print(path)
