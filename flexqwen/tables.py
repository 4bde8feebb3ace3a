"""Tables as Markdown, and as aligned text for a terminal."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any


def format_cell(value: Any) -> str:
    """Text as it is, numbers with thousands separators, None and NaN as a dash."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return "–"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], text_columns: int | Collection[int] = 1
) -> str:
    """A Markdown table; text columns, the first so many or which, stand on the left, those of numbers on the right."""
    left = range(text_columns) if isinstance(text_columns, int) else text_columns
    rule = "|".join("---" if column in left else "---:" for column in range(len(header)))
    lines = [f"| {' | '.join(map(format_cell, cells))} |" for cells in (header, *rows)]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def plain_table(rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns, the header in the first row: text to the left, numbers to the right."""
    cells = [[format_cell(cell) for cell in row] for row in rows]
    columns = [
        [cell.ljust(width) if isinstance(last, str) else cell.rjust(width) for cell in column]
        for column, last in zip(zip(*cells, strict=True), rows[-1], strict=True)
        for width in [max(map(len, column))]
    ]
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))
