"""Publishes the page of space/ on the Hugging Face Hub, as a Space for a published model."""

import re
import tempfile
from pathlib import Path

import modeling_flexqwen
from flexqwen.cli import InputError
from flexqwen.hub.repository import Repository
from flexqwen.remote import explain_failure

PAGE = Path(modeling_flexqwen.__file__).parent / "space"  # of a checkout
FILES = ("app.py", "answers.py", "texts.yaml", "style.css", "requirements.txt", "README.md")


def publish_space(space: Repository, model: Repository) -> None:
    """Makes one commit of what changed in the page, which then loads `model`."""
    if missing := [name for name in FILES if not (PAGE / name).is_file()]:
        raise InputError(f"{PAGE} lacks {missing[0]}; a Space is published from a checkout of FlexQwen")
    with explain_failure(f"{space.url} is not published", "run again"), tempfile.TemporaryDirectory() as folder:
        if "config.json" not in model.list_files():
            raise InputError(f"{model.url} has no model at its root; publish a run there first")
        there = space.list_files()
        if "app.py" in there and "answers.py" not in there:
            raise InputError(f"{space.url} holds another app, which is not overwritten; give another --space")
        files = {name: Path(folder) / name for name in FILES}
        for name, file in files.items():
            text = (PAGE / name).read_text(encoding="utf-8")
            if name == "app.py":
                text = re.sub(r'^MODEL = ".*"', f'MODEL = "{model.repo_id}"', text, count=1, flags=re.MULTILINE)
            elif name == "README.md":
                text = text.replace("models: []", f"models: [{model.repo_id}]", 1)
            file.write_text(text, encoding="utf-8")
        space.create()
        space.commit(files, f"The page for {model.repo_id}")
