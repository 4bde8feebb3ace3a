"""Damages real files: cuts, changes and removes them, and replaces values inside the formats that they have."""

import gzip
import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

VALUES = [None, True, -1, 0, 1, 3, 0.5, 10**6, 2**31, 10**20, 1e308, float("nan"), "", "x", "nan", "1e9", "../../x"]
VALUES += ["/dev/null", "a\nb", "\u00e9\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"), [], {}, [1]]
VALUES += [["x", "y"], {"x": 1}, {"": None}, [[[[[]]]]], "x" * 5000]
ODD_JSON = ["", "null", "[]", "{}", "3", '"x"', "[" * 100_000, '{"a":' * 100_000, "NaN", "\ufeff{}", "{" + "}"]
ODD_YAML = ["", "null", "[]", "3", "x", "[" * 5000, "{a: " * 5000, "a: b: c", "\t", "- a", "&a [*a]", "a: &a {b: *a}"]
ODD_YAML += [
    "!!python/object/apply:os.getcwd []",
    "a: !!binary x",
    "? [a]\n: b",
    "a: 2001-99-99",
    "1: 2\n1: 3",
    "<<: 3",
]
ODD_YAML += ["a: &a [x]\n" + "\n".join(f"b{n}: &b{n} [{', '.join([f'*{p}'] * 9)}]" for n, p in enumerate("abcdefg"))]
ODD_YAML += ["a: &a0 [x, x]\n" + "".join(f"b{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))]
TEXT = {".json", ".jsonl", ".yaml", ".md", ".txt", ".csv", ".xml", ".conllu", ".sha256"}


def mutate(file: Path, random: Random) -> str:
    """Damages a file, and says how."""
    own = next((change for ending, change in OWN.items() if file.name.endswith(ending)), None)
    changes = [own] * 3 if own else []
    change = random.choice([*changes, *([change_text] if file.suffix in TEXT else []), change_bytes])
    return change(file, random)


def change_bytes(file: Path, random: Random) -> str:
    """Cut, empty, noise, ...; or it is not there, a folder, or a link to itself."""
    data = file.read_bytes()
    place = random.randrange(len(data) + 1)
    noise = random.randbytes(random.choice([1, 8, 200]))
    kinds = {
        "cut": data[:place],
        "empty": b"",
        "noise": noise,
        "twice": data + data,
        "longer": data + noise,
        "changed": data[:place] + noise + data[place + len(noise) :],
        "inserted": data[:place] + noise + data[place:],
        "bit": data[:place]
        + bytes(byte ^ 1 << random.randrange(8) for byte in data[place : place + 1])
        + data[place + 1 :],
    }
    kind = random.choice([*kinds, "gone", "folder", "loop"])
    file.unlink()
    if kind in kinds:
        file.write_bytes(kinds[kind])
    elif kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file)
    return f"{kind} at {place}"


def change_text(file: Path, random: Random) -> str:
    """A line is removed, doubled, moved, or a number or a word in it is another."""
    lines = file.read_text(encoding="utf-8").split("\n")
    place = random.randrange(len(lines))
    kind = random.choice(["removed", "doubled", "word"])
    if kind == "word":
        words = lines[place].split(" ")
        words[random.randrange(len(words))] = str(random.choice(VALUES))
        lines[place] = " ".join(words)
    else:
        lines[place : place + 1] = [] if kind == "removed" else [lines[place]] * 2
    file.write_text("\n".join(lines), encoding="utf-8")
    return f"line {place} {kind}"


def change_value(value: Any, random: Random) -> tuple[Any, str]:
    """The same nested value with one in it replaced or removed; and which."""
    here, path = value, ""
    while isinstance(here, (dict, list)) and here:
        key = random.choice(list(here) if isinstance(here, dict) else range(len(here)))
        path += f".{key}"
        if not (isinstance(here[key], (dict, list)) and here[key]) or random.random() < 0.3:
            if random.random() < 0.2:
                del here[key]
                return value, f"{path} removed"
            here[key] = random.choice(VALUES)
            return value, f"{path} = {str(here[key])[:40]!r}"
        here = here[key]
    return random.choice(VALUES), "the whole"


def change_json(file: Path, random: Random) -> str:
    if random.random() < 0.1:
        file.write_text(random.choice(ODD_JSON), encoding="utf-8")
        return "odd JSON"
    value, what = change_value(json.loads(file.read_text(encoding="utf-8")), random)
    file.write_text(json.dumps(value), encoding="utf-8")
    return what


def change_json_lines(file: Path, random: Random) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    place = random.randrange(len(lines))
    value, what = change_value(json.loads(lines[place]), random)
    lines[place] = json.dumps(value)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {place}: {what}"


def change_yaml(file: Path, random: Random) -> str:
    if random.random() < 0.3:
        text = random.choice(ODD_YAML)
        file.write_text(
            text if random.random() < 0.5 else f"{file.read_text(encoding='utf-8')}\n{text}", encoding="utf-8"
        )
        return f"odd YAML {text[:30]!r}"
    value, what = change_value(yaml.safe_load(file.read_text(encoding="utf-8")), random)
    file.write_text(yaml.safe_dump(value), encoding="utf-8")
    return what


def change_safetensors(file: Path, random: Random) -> str:
    """Its header, or the length of the header."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if random.random() < 0.2:
        size = random.choice([0, 1, size - 1, size + 1, len(data), 10**8 + 1, 2**40, 2**63, 2**64 - 1])
        file.write_bytes(size.to_bytes(8, "little") + data[8:])
        return f"a header of {size}"
    header, what = change_value(json.loads(data[8 : 8 + size]), random)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return what


def change_parquet(file: Path, random: Random) -> str:
    """A column is not there, of another type or of no values; or there is no row."""
    table = pq.read_table(file)
    name = random.choice(table.column_names)
    place, kind = table.column_names.index(name), random.choice(["without", "numbers", "nulls", "empty", "short"])
    if kind == "without":
        table = table.drop_columns([name])
    elif kind in ("empty", "short"):
        table = table.slice(0, 0 if kind == "empty" else 1)
    else:
        other = pa.nulls(len(table), table[name].type) if kind == "nulls" else pa.array(np.arange(len(table)))
        table = table.set_column(place, name, other)
    pq.write_table(table, file)
    return f"{kind} {name}"


def change_gzip(file: Path, random: Random) -> str:
    """What is compressed is damaged; of a shard, the checksum beside it is right all the same."""
    data = gzip.decompress(file.read_bytes())
    place, noise = random.randrange(len(data)), random.randbytes(4)
    tag = random.choice([b"<p>", b"</p>", b"<text>", b"<x/>", b"<TEI>", b"</TEI>", b"&lt;", b"&x;", b"<!--", b"<head>"])
    start = data.rfind(b">", 0, place) + 1
    kinds = [data[:place], data[:place] + noise + data[place:], data[:start] + tag + data[start:]]
    kinds += [data[: data.rfind(b"<", 0, place) + 1] + data[place:]]
    changed = random.choice(kinds)
    file.write_bytes(gzip.compress(changed, mtime=0))
    for sums in file.parents[1].glob("checksum.sha256"):
        digests = [hashlib.sha256(content).hexdigest() for content in (data, changed)]
        sums.write_text(sums.read_text().replace(*digests))
    return f"{len(data)} bytes to {len(changed)}, compressed"


def change_array(file: Path, random: Random) -> str:
    """Another array, or other arrays, in a file of NumPy."""
    loaded = np.load(file)
    arrays = dict(loaded) if file.suffix == ".npz" else {"": loaded}
    name = random.choice(list(arrays))
    one = arrays[name]
    others = [
        one[:0],
        one[:1],
        one.astype(np.float32),
        one.astype(str),
        one[None],
        np.array(3),
        one.astype(np.int64) + 10**6,
    ]
    arrays[name] = random.choice([*others, -np.ones_like(one, dtype=np.int64)])
    if file.suffix == ".npz":
        np.savez(file, **{key: arrays[key] for key in arrays if key != name or random.random() < 0.8})
    else:
        np.save(file, arrays[name])
    return f"{name or 'the array'} is another"


def change_pickle(file: Path, random: Random) -> str:
    """Another value, or the same with one in it replaced."""
    value, what = torch.load(file, weights_only=False), "the whole"
    if random.random() < 0.7:
        value, what = change_value(value, random)
    else:
        value = random.choice([*VALUES, torch.zeros(3), {"state": {}, "param_groups": []}])
    torch.save(value, file)
    return what


OWN = {
    ".json": change_json,
    ".jsonl": change_json_lines,
    ".yaml": change_yaml,
    ".safetensors": change_safetensors,
    ".parquet": change_parquet,
    ".gz": change_gzip,
    ".npy": change_array,
    ".npz": change_array,
    ".pt": change_pickle,
    ".pth": change_pickle,
}
