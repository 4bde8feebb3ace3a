"""The pages are short, their links lead somewhere, their commands exist, and the generated ones are current."""

import ast
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


def test_front_page_is_short():
    front, body = (ROOT / "README.md").read_text(encoding="utf-8").split("\n---\n", 1)
    assert front.startswith("---\n")
    assert len(body.split()) <= 1000


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
    reference = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    verbs = set(re.findall(r"`python -m flexqwen (\w+)", reference)) | {"<verb>"}
    known = set(re.findall(r"`--(\w+)`", reference)) | set(transformers.TrainingArguments.__dataclass_fields__)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = [line for block in blocks(page, "sh") for line in block.replace("\\\n", "").splitlines()]
    commands += re.findall(r"`((?:python|make) [^`]+)`", page.read_text(encoding="utf-8"))
    for command in commands:
        words = command.partition("#")[0].split()
        for word in words:
            if re.fullmatch(r"(configs|benchmarks|docs|tests)/.*|\w+\.py", word):
                assert (ROOT / word).exists(), command
        if words[:3] == ["python", "-m", "flexqwen"] and len(words) > 3:
            assert words[3] in verbs, command
        if words[:1] == ["make"]:
            assert words[1] in targets, command
        if any(word in ("train.py", "eval.py", "carolina_originality.py", "flexqwen") for word in words[1:]):
            unknown = set(re.findall(r"--(\w+)", command)) - known - {"help", "name", "nproc_per_node"}
            assert not unknown, f"{command}: {unknown}"


@each_page
def test_python_is_valid(page):
    for block in blocks(page, "python"):
        ast.parse(block)


def test_generated_pages_are_current():
    for path, text in runpy.run_path(str(ROOT / "docs/make_reference.py"))["pages"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale; run python docs/make_reference.py"
