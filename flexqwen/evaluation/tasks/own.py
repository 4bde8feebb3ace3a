"""Tasks of one's own, without code: a file of pairs or choices, a text, or a data set of the Hub.

- `pairs.jsonl`, `choices.jsonl`: a JSON object a line, as `choices.make_item` takes them;
- `text:<file>`: documents that are parted by blank lines, for bits per byte;
- `hf://<owner>/<name>/<config>/<split>?good=<column>&bad=<column>`: those objects, of the columns named.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from flexqwen.cli import InputError, suggest_name
from flexqwen.evaluation import sources
from flexqwen.evaluation.heldout import MODES
from flexqwen.evaluation.tasks import NAMES, Item, Task
from flexqwen.evaluation.tasks.bits_per_byte import predict_texts
from flexqwen.evaluation.tasks.choices import choose, make_item
from flexqwen.files import digest

HUB_DATA = "hf://<owner>/<name>/<config>/<split>?good=<column>&bad=<column>"


def make_task(name: str) -> Task:
    """The task that `--tasks` calls so. Its version is made of its content, so that other content is another task."""
    if name.startswith("text:"):
        path = Path(name.removeprefix("text:"))
        documents = [part.strip() for part in re.split(r"\n\s*\n", _read(path)) if part.strip()]
        if not documents:
            raise InputError(f"{path} has no text")
        items = [Item(f"{number}", document) for number, document in enumerate(documents, 1)]
        return Task(path.name, _version(documents), lambda context: items, predict_texts, modes=MODES)
    if name.startswith("hf://"):
        label, rows = _read_hub(name)
    elif name.endswith(".jsonl"):
        label, rows = Path(name).name, _read_lines(Path(name))
    else:
        own = f"or name a .jsonl file, text:<file> or {HUB_DATA}"
        raise InputError(f"unknown task {name!r}{suggest_name(name, NAMES)}; there are: {', '.join(NAMES)}; {own}")
    items, kept = {}, []
    for number, (place, row) in enumerate(rows, 1):
        try:
            item = make_item(row, number)
        except (TypeError, KeyError, ValueError) as error:
            missing = f"field {error} is missing" if isinstance(error, KeyError) else error
            raise InputError(f"{place}: {missing}") from None
        if item.id in items:
            raise InputError(f"{place}: the id {item.id!r} is there before; give each item its own")
        items[item.id] = item
        kept.append(row)
    if not items:
        raise InputError(f"{name} has no items")
    by_length = any("context" in row for row in kept)
    return Task(label, _version(kept), lambda context: list(items.values()), partial(choose, by_length=by_length))


def _version(content) -> int:
    return int(digest(content)[:8], 16)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}") from None


def _read_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """The objects of a file, and where each stands."""
    for number, line in enumerate(_read(path).split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: this is not JSON ({error})") from None


def _read_hub(name: str) -> tuple[str, list[tuple[str, dict]]]:
    """The name of a data set of the Hub, and its rows: the columns that are named, under the names of the fields."""
    address = urlsplit(name)
    parts, columns = [address.netloc, *address.path.strip("/").split("/")], dict(parse_qsl(address.query))
    if len(parts) != 4 or not columns:
        raise InputError(f"{name} is not of the form {HUB_DATA}")
    rows, _ = sources.read_hub_rows("/".join(parts[:2]), *parts[2:], tuple(columns.values()))
    named = [{field: row[column] for field, column in columns.items()} for row in rows]
    return "/".join(parts), [(f"{name}, row {number}", row) for number, row in enumerate(named, 1)]
