"""Tables: what stands left and right, and how numbers are written."""

from flexqwen.tables import markdown_table, plain_table


def test_markdown():
    table = markdown_table(("name", "number", "note"), [("a", 1234, "x"), ("b", 0.25, "y"), ("c", None, "z")], (0, 2))
    rule, *rows = table.split("\n")[1:]
    assert rule == "|---|---:|---|"
    assert rows == ["| a | 1,234 | x |", "| b | 0.2 | y |", "| c | – | z |"]
    assert markdown_table(("name", "number"), [], 1) == "| name | number |\n|---|---:|"


def test_plain():
    assert plain_table([("name", "number"), ("a", 1234), ("bcdef", float("nan"))]) == (
        "name   number\na       1,234\nbcdef       –"
    )
