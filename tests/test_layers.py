"""The rooms of the library know only those below them."""

import ast
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "flexqwen"
BELOW = {
    "data": set(),
    "evaluation": {"data"},
    "training": {"data", "evaluation"},
    "hub": {"data", "evaluation", "training"},
    "study": {"data", "evaluation", "training"},
}
SHARED = {path.stem for path in LIBRARY.glob("*.py")} - {"__main__"}


def imported(path: Path) -> set[str]:
    """Names of what a module imports of the library, `flexqwen.` cut off; imports within functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("flexqwen.") for name in found if name.startswith("flexqwen.")}


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_imports_go_downward(path):
    room = path.relative_to(LIBRARY).parts[0]
    if room == "__main__.py":
        return
    allowed = SHARED if room not in BELOW else SHARED | BELOW[room] | {room}
    for name in imported(path):
        assert name.split(".")[0] in {*allowed, "__version__"}, f"{path} imports flexqwen.{name}"


def test_numba_is_loaded_only_where_it_is_needed():
    """It takes a second, and training has no use for it."""
    for path in LIBRARY.rglob("*.py"):
        nodes = ast.parse(path.read_text(encoding="utf-8")).body
        loaded = " ".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))
        assert "kernels" not in loaded and ("numba" not in loaded or path.stem == "kernels"), path


def test_no_two_modules_have_one_name():
    names = [path.stem for path in LIBRARY.rglob("*.py") if path.stem not in ("__init__", "__main__")]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
