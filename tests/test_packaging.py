"""What the code imports is declared, and what is declared is pinned."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLED = [ROOT / "configuration_flexqwen.py", ROOT / "modeling_flexqwen.py", *(ROOT / "flexqwen").rglob("*.py")]
IMPORTED_AS = {"PyYAML": "yaml", "scikit-learn": "sklearn", "lm-eval": "lm_eval"}
IMPORTED_AS["matplotlib"] = "matplotlib PIL"  # it needs pillow
IMPORTED_AS["numba"] = "numba llvmlite"


def test_imports_are_declared():
    extras = [name for extra in ("export", "bench") for name in PROJECT["optional-dependencies"][extra]]
    names = map(name_of, PROJECT["dependencies"] + extras)
    declared = " ".join(IMPORTED_AS.get(name, name) for name in names).split()
    own = {"flexqwen", "configuration_flexqwen", "modeling_flexqwen"}
    for path in INSTALLED:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - own:
                assert name in declared, f"{path} imports {name}"


def test_tested_versions_lie_in_the_declared_ranges():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    ranges = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
    assert {each.name for each in ranges} == pins.keys()
    for each in ranges:
        assert each.specifier.contains(pins[each.name]), each


def test_no_script_changes_the_path():
    for path in [
        *ROOT.glob("*.py"),
        *(path for name in ("flexqwen", "benchmarks", "docs") for path in (ROOT / name).rglob("*.py")),
    ]:
        assert "sys.path" not in path.read_text(encoding="utf-8"), path


def name_of(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement)[0]
