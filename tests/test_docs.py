"""The pages are short, their links lead somewhere, their commands exist, and the generated ones are current."""

import ast
import itertools
import re
import runpy
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("README*.md"), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/README.md"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def documented_options() -> dict[tuple[str, ...], set[str]]:
    """The options of each command, by its words."""
    reference = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^#+ `(python [^`]+)`$", reference, flags=re.MULTILINE)
    found = {
        tuple(title.partition(" <")[0].split()): {"help", *re.findall(r"^\| `--(\w+)`", text, re.MULTILINE)}
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }
    found["python", "train.py"] |= {"name", *transformers.TrainingArguments.__dataclass_fields__}
    return found


def test_front_page_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n") and len(text.split()) <= 1000


@each_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http:", "https:")):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in headings(target), f"{page}: {link}"


@each_page
def test_commands_exist(page):
    known = documented_options()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = [line for block in blocks(page, "sh") for line in block.replace("\\\n", "").splitlines()]
    commands += re.findall(r"`((?:python|make) [^`]+)`", page.read_text(encoding="utf-8"))
    for command in itertools.chain.from_iterable(line.split("&&") for line in commands):
        words = command.partition("#")[0].split()
        for word in words:
            if re.fullmatch(r"(configs|benchmarks|docs|tests)/.*|\w+\.py", word):
                assert (ROOT / word).exists(), command
        if words[:1] == ["make"]:
            assert words[1] in targets, command
        if words[:1] == ["torchrun"]:
            words = ["python", *words[words.index("train.py") :]]
        if {"train.py", "eval.py", "carolina_originality.py", "flexqwen"} & set(words[1:3]) and "<verb>" not in words:
            named = [title for title in known if tuple(words[: len(title)]) == title]
            assert named, command
            unknown = set(re.findall(r"--(\w+)", " ".join(words))) - known[max(named, key=len)]
            assert not unknown, f"{command}: {unknown}"


@each_page
def test_python_is_valid(page):
    for block in blocks(page, "python"):
        ast.parse(block)


def test_generated_pages_are_current():
    for path, text in runpy.run_path(str(ROOT / "docs/make_reference.py"))["pages"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale; run python docs/make_reference.py"
