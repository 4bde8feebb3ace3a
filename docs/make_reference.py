"""Writes docs/options.md and docs/code.md from the code: `python docs/make_reference.py`."""

import argparse
import ast
import runpy
from pathlib import Path
from unittest import mock

import transformers
import yaml

from flexqwen.tables import markdown_table

ROOT = Path(__file__).parents[1]
MADE = "<!-- Made by docs/make_reference.py from the code. Do not edit. -->\n"
CONFIGS = ("quickstart", "small", "base", "continue")
TRAINER = set(transformers.TrainingArguments.__dataclass_fields__)
ROOMS = ("data", "evaluation", "training", "hub", "study")  # from the ground up
CORES = 4096  # stands for the number of cores of any machine


class Shown(SystemExit):
    """Help was asked for. Its code is the parser that would have printed it."""


def parser_of(target: str, *words: str) -> argparse.ArgumentParser:
    """The parser of `python <target> <words>`, where the target is a script or a module."""

    def show(parser, file=None):
        raise Shown(parser)

    run, name = (runpy.run_path, str(ROOT / target)) if target.endswith(".py") else (runpy.run_module, target)
    argv, cores = mock.patch("sys.argv", [target, *words, "--help"]), mock.patch("os.cpu_count", lambda: CORES)
    with mock.patch("argparse.ArgumentParser.print_help", show), argv, cores:
        try:
            run(name, run_name="__main__")
        except Shown as shown:
            return shown.code
    raise RuntimeError(f"{target} {' '.join(words)} --help shows no help")


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a parser's commands, by name."""
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


def default_of(action: argparse.Action) -> str:
    value = action.default
    if action.required:
        return "required"
    if value in (None, "", []):
        return ""
    if value == CORES:
        return "all cores"
    if isinstance(action, argparse._StoreTrueAction):
        return ""
    return f"`{' '.join(map(str, value)) if isinstance(value, list | tuple) else str(value)}`"


def options(parser: argparse.ArgumentParser, leave_out: set[str] = frozenset()) -> str:
    """A table of a parser's options."""
    rows = []
    for action in parser._actions:
        name = action.option_strings[0] if action.option_strings else f"<{action.dest}>"
        if action.dest in {"help", *leave_out} or name == f"--no_{action.dest}":
            continue
        text = (action.help or "").removesuffix(" (default: %(default)s)") % {"default": action.default}
        if action.choices:
            text += f"{'; ' if text else ''}one of {', '.join(map(str, action.choices))}"
        rows.append([f"`{name}`", default_of(action), text.replace("|", "\\|").replace("<", "\\<")])
    return markdown_table(["option", "default", "meaning"], rows, 3) if rows else "It has no options.\n"


def section(title: str, parser: argparse.ArgumentParser, level: int = 2) -> list[str]:
    """A parser's description, its options, and those of its commands."""
    description = (parser.description or "").strip()
    lines = [f"{'#' * level} `{title}`", description[:1].upper() + description[1:].removesuffix(".") + "."]
    if not (found := commands(parser)):
        return [*lines, options(parser)]
    return lines + [part for name, command in found.items() for part in section(f"{title} {name}", command, level + 1)]


def trainer_options() -> str:
    """The Trainer's options that the configs set, and to what."""
    read = [yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8")) for name in CONFIGS]
    names = dict.fromkeys(name for config in read for name in config if name in TRAINER)
    rows = [[f"`{name}`", *(f"`{config[name]}`" if name in config else "" for config in read)] for name in names]
    return markdown_table(["option", *(f"`{name}.yaml`" for name in CONFIGS)], rows, 5)


def options_page() -> str:
    train = parser_of("train.py")
    parts = [
        "# Options",
        "All commands take `--name value`. A name has underscores; dashes are understood as well. Bad input ends with "
        "one line and exit status 2.",
        "## `python train.py <config.yaml> [--name value ...]`",
        "A config is a YAML mapping of these names. What stands on the command line wins. The shape of the model has "
        "the names of `Qwen3Config`.",
        options(train, TRAINER),
        "All options of [transformers.TrainingArguments]"
        "(https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments) hold as well. "
        "The configs set these:",
        trainer_options(),
        *section("python eval.py", parser_of("eval.py")),
        *section("python carolina_originality.py", parser_of("carolina_originality.py")),
    ]
    for verb in commands(parser_of("flexqwen")):
        parts += section(f"python -m flexqwen {verb}", parser_of("flexqwen", verb))
    return MADE + "\n\n".join(part.strip() for part in parts if part) + "\n"


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if docstring is None:
        raise SystemExit(f"error: {path.relative_to(ROOT)} has no docstring; its first line stands in docs/code.md")
    return docstring.splitlines()[0]


def tree(folder: Path, depth: int = 0) -> list[str]:
    """A line for every module in a folder, modules first, then folders."""
    indent, modules = "  " * depth, sorted(folder.glob("*.py"))
    lines = [
        f"{indent}- [`{path.name}`](../{path.relative_to(ROOT).as_posix()}): {first_line(path)}"
        for path in modules
        if path.name != "__init__.py"
    ]
    folders = sorted(path.parent for path in folder.glob("*/__init__.py"))
    for inner in sorted(folders, key=lambda path: ROOMS.index(path.name) if path.name in ROOMS else 0):
        docstring = ast.get_docstring(ast.parse((inner / "__init__.py").read_text(encoding="utf-8")))
        text = f": {docstring.splitlines()[0]}" if docstring else ""
        lines += [f"{indent}- **[`{inner.name}/`](../{inner.relative_to(ROOT).as_posix()})**{text}"]
        lines += tree(inner, depth + 1)
    return lines


def code_page() -> str:
    scripts = sorted(ROOT.glob("*.py"))
    parts = [
        "# The code",
        "The top level holds what you and the Hub call. The two model files are also the remote code that "
        "`trust_remote_code=True` loads, so they import nothing else of the project. Everything else is in "
        "`flexqwen/`. Imports there go downward only: shared modules, `data`, `evaluation`, `training`, then `hub` and "
        "`study`, which do not know each other. `tests/test_layers.py` holds that rule.",
        "\n".join(f"- [`{path.name}`](../{path.name}): {first_line(path)}" for path in scripts),
        "## `flexqwen/`",
        "\n".join(tree(ROOT / "flexqwen")),
        "## `benchmarks/`, `docs/` and `space/`",
        "\n".join(tree(ROOT / "benchmarks") + tree(ROOT / "docs") + tree(ROOT / "space")),
        "## `tests/`",
        "A folder for each room of `flexqwen/`, `model/` for the two model files, `helpers/` for what tests share. "
        "`make test-slow` runs those marked `slow`, which `make test` leaves out.",
    ]
    return MADE + "\n" + "\n\n".join(parts) + "\n"


def pages() -> dict[Path, str]:
    """The generated pages."""
    return {ROOT / "docs/options.md": options_page(), ROOT / "docs/code.md": code_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
