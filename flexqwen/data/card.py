"""The dataset card and its figures: what a reader has to know, in the form that the Hugging Face Hub reads.

Both are made from the finished folder, its manifest and its Parquet files: a changed card needs no shard.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from flexqwen.data.corpus import MIN_TOKENS
from flexqwen.data.splits import MIN_GAP, PAIRS, TOLERANCE
from flexqwen.data.texts import read_manifest
from flexqwen.drawing import save_figure
from flexqwen.files import atomic_write
from flexqwen.tables import format_cell, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXTS = yaml.safe_load(Path(__file__).with_name("card.yaml").read_text(encoding="utf-8"))
CARD = Path(__file__).with_name("card.md").read_text(encoding="utf-8")


def write_card(folder: Path) -> None:
    """Writes `<folder>/README.md` and `<folder>/figures/*.png` of a dataset that has all else."""
    manifest, index = read_manifest(folder), read_index(folder)
    pairs = {
        config: pq.read_table(folder / "data" / config, columns=["typology", "tokens"])
        for pair in PAIRS
        for config in pair
    }
    front = yaml.safe_dump(_front_matter(folder, manifest), sort_keys=False, allow_unicode=True, width=120)
    text = f"---\n{front}---\n\n{_write_body(manifest, index, pairs)}"
    for name, figure in (
        ("header_and_ngram", draw_agreement(index)),
        ("originality_by_taxonomy", draw_taxonomies(index)),
        ("length_gold_and_matched", draw_lengths({name: part["tokens"].to_numpy() for name, part in pairs.items()})),
    ):
        save_figure(figure, folder / "figures" / f"{name}.png", dpi=110, metadata={"Software": None})
    with atomic_write(folder / "README.md") as aside:
        aside.write_text(text, encoding="utf-8")


def read_index(folder: Path) -> pa.Table:
    """What the card and `inspect` say of every document; columns of few distinct texts as dictionaries."""
    few = ["taxonomy", "typology", "license"]
    columns = [*few, "tokens", "originality", "ngram_originality"]
    return pq.read_table(folder / "data" / "index", columns=columns, read_dictionary=few).unify_dictionaries()


def count_by_taxonomy(index: pa.Table) -> Iterator[tuple]:
    """For each taxonomy, the largest first: name, documents, those of at least 21 tokens, tokens, means of both
    measures."""
    (codes, names), tokens = _codes(index, "taxonomy"), index["tokens"].to_numpy()
    for code in np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable"):
        part = codes == code
        if part.any():
            long = part & (tokens >= MIN_TOKENS)
            means = [_mean(values[long]) for values in (_header(index), index["ngram_originality"].to_numpy())]
            yield names[code], int(part.sum()), int(long.sum()), int(tokens[part].sum()), *means


def _codes(index: pa.Table, column: str) -> tuple[np.ndarray, list[str]]:
    """A column of few distinct texts, as numbers of these texts; and the texts."""
    found = index[column].combine_chunks()
    return found.indices.to_numpy(), found.dictionary.to_pylist()


def _header(index: pa.Table) -> np.ndarray:
    """The header's originality: float64, NaN where it is undefined or absent."""
    long = index["tokens"].to_numpy() >= MIN_TOKENS
    return np.where(long, index["originality"].to_numpy().astype(float), np.nan)


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _front_matter(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    configs, info = [], []
    for config in TEXTS["configs"]:
        splits = {
            name.split("/")[1]: size for name, size in manifest["splits"].items() if name.startswith(f"{config}/")
        }
        files = [{"split": split, "path": f"data/{config}/{split}-*.parquet"} for split in splits]
        configs.append({"config_name": config, "data_files": files} | ({"default": True} if config == "gold" else {}))
        columns = [
            (name, dtype) for name, (dtype, _) in TEXTS["columns"].items() if (config, name) != ("index", "text")
        ]
        info.append(
            {
                "config_name": config,
                "features": [{"name": name, "dtype": dtype} for name, dtype in columns],
                "splits": [
                    {"name": split, "num_bytes": size["bytes"], "num_examples": size["documents"]}
                    for split, size in splits.items()
                ],
                "download_size": sum(path.stat().st_size for path in (folder / "data" / config).iterdir()),
                "dataset_size": sum(size["bytes"] for size in splits.values()),
            }
        )
    bounds = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
    kept, texts = manifest["documents"]["kept"], TEXTS["generated" if manifest["generated"] else "real"]
    return {
        "pretty_name": texts["title"],
        "language": ["pt"],
        **texts["license"],
        "task_categories": ["text-generation", "fill-mask"],
        "size_categories": [next((name for bound, name in bounds if kept < bound), "10M<n<100M")],
        "tags": texts["tags"],
        "configs": configs,
        "dataset_info": info,
    }


def _tabulate(header: Sequence[str], rows: Iterable[Sequence], text_columns: int | Collection[int] = 1) -> str:
    """A table of rows that begin with a name; names are set as code."""
    rows = [(f"`{name}`" if name else "none named", *cells) for name, *cells in rows]
    return markdown_table(header, rows, text_columns)


def _tabulate_typologies(index: pa.Table, pairs: dict[str, pa.Table], most: int = 8) -> str:
    """How the tokens of the paired configs divide over source typologies."""
    names = _codes(index, "typology")[1]
    weights = []
    for part in pairs.values():
        codes = pc.index_in(part["typology"], pa.array(names)).to_numpy()
        weights.append(np.bincount(codes, part["tokens"].to_numpy(), minlength=len(names)))
    percents = [100 * weight / max(1, weight.sum()) for weight in weights]
    order = np.argsort(-np.sum(weights, axis=0), kind="stable")[:most]
    rows = [(names[code], *(float(percent[code]) for percent in percents)) for code in order]
    return _tabulate(("typology, % of tokens", *(f"`{config}`" for config in pairs)), rows)


def _tabulate_agreement(manifest: dict[str, Any]) -> str:
    """How the header's measure and the recomputed one agree."""
    agreement = manifest["agreement"]
    if not {"column", "among_long"} <= agreement.keys():
        return "There are too few documents to compare the two."
    among = f"what documents of at least {MIN_TOKENS} tokens share, as the header seems to"
    rows = []
    for text, name in (("what any document shares, as in the column", "column"), (among, "among_long")):
        found = agreement[name]
        rows.append((text, f"{found['pearson']:.3f}", f"{found['spearman']:.3f}", found["mean_absolute_difference"]))
    table = markdown_table(("what counts as a copy", "Pearson", "Spearman", "mean absolute difference"), rows)
    whole = (
        ""
        if manifest["generated"]
        else "\nThe header was computed over the whole corpus, this over the shards at hand."
    )
    return f"Over the {agreement['documents']:,} documents of at least {MIN_TOKENS} tokens:\n\n{table}\n{whole}"


def _write_body(manifest: dict[str, Any], index: pa.Table, pairs: dict[str, pa.Table]) -> str:
    """The text of `card.md`, filled in."""
    shards, documents = manifest["shards"], manifest["documents"]
    codes, names = _codes(index, "license")
    licences = sorted((-count, names[code]) for code, count in enumerate(np.bincount(codes).tolist()) if count)
    checks = []
    for name, result in manifest["checks"].items():
        (limit,) = result.keys() - {"value", "passed"}
        checks.append((name, f"{result['value']:g}", f"{limit.replace('_', ' ')} {result[limit]}"))
    of_split = ("documents", "tokens", "originality", "ngram_originality", "size")
    splits = [(name, *(split[value] for value in of_split)) for name, split in manifest["splits"].items()]
    columns = [(name, *column) for name, column in TEXTS["columns"].items()]
    measures = ("originality", "n-gram originality")
    return CARD.format(
        **TEXTS["generated" if manifest["generated"] else "real"],
        shards=format_cell(len(shards["used"])),
        read=format_cell(documents["read"]),
        kept=format_cell(documents["kept"]),
        dropped="; ".join(f"{count:,} {reason}" for reason, count in documents["dropped"].items()) or "none",
        absent=f" Of the listed shards {len(shards['absent']):,} were absent." if shards["absent"] else "",
        bad=f" {len(shards['bad']):,} bad shards were left out: see `manifest.json`." if shards["bad"] else "",
        configs=_tabulate(("config", "what it holds"), TEXTS["configs"].items(), 2),
        sizes=_tabulate(("split", "documents", "tokens", *measures, "of the size asked for"), splits, (0, 5)),
        columns=_tabulate(("column", "type", "what it is"), columns, 3),
        measure={"header": "`originality`", "ngram": "`ngram_originality`"}[manifest["parameters"]["measure"]],
        agreement=_tabulate_agreement(manifest),
        by_taxonomy=_tabulate(
            ("taxonomy", "documents", f"of {MIN_TOKENS} tokens or more", "tokens", *measures), count_by_taxonomy(index)
        ),
        by_typology=_tabulate_typologies(index, pairs),
        checks=markdown_table(("check", "value", "allowed"), checks, 3),
        licences=markdown_table(("licence", "documents"), [(name or "none named", -count) for count, name in licences]),
        min_tokens=MIN_TOKENS,
        min_gap=MIN_GAP,
        tolerance=TOLERANCE,
    )


# Figures. Colours: original blue, control orange, everywhere.

_BLUE, _ORANGE = "#2a6f97", "#e07a1f"


def _new_figure(**options) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(**options)


def _put_legend_above(axis: "Axes") -> None:
    """A legend between title and frame, where no data can be under it."""
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)


def draw_agreement(index: pa.Table) -> "Figure":
    """How many documents of at least 21 tokens have which originality, stated and recomputed."""
    header, ngram = _header(index), index["ngram_originality"].to_numpy()
    both = ~np.isnan(header) & ~np.isnan(ngram)
    figure = _new_figure(figsize=(6, 5))
    axes = figure.add_subplot()
    if both.any():
        image = axes.hist2d(
            header[both], ngram[both], bins=50, range=[[0, 100]] * 2, norm="log", cmap="viridis", cmin=1
        )[3]
        figure.colorbar(image, label="documents")
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle="--", label="equal")
    axes.set(xlabel="originality stated in the header (%)", ylabel="recomputed: 7-grams held by no other (%)")
    axes.set_title(f"{both.sum():,} documents of at least {MIN_TOKENS} tokens", pad=28)
    _put_legend_above(axes)
    return figure


def draw_taxonomies(index: pa.Table) -> "Figure":
    """The originality that the headers state, for each taxonomy."""
    long, header = index["tokens"].to_numpy() >= MIN_TOKENS, _header(index)
    codes, names = _codes(index, "taxonomy")
    present = sorted(np.unique(codes), key=names.__getitem__)
    figure = _new_figure(figsize=(7, 1 + len(present)), layout="constrained")
    axes = figure.subplots(len(present), 1, sharex=True, squeeze=False)[:, 0]
    for axis, code in zip(axes, present, strict=True):
        part = long & (codes == code)
        weight = np.full(part.sum(), 100 / max(1, part.sum()))
        axis.hist(header[part], bins=np.arange(0, 105, 5), weights=weight, color=_BLUE, edgecolor="white")
        axis.set_title(f"{names[code]}: {part.sum():,} documents", loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set(xlabel=f"originality stated in the header (%), documents of at least {MIN_TOKENS} tokens")
    figure.supylabel("% of the documents of each taxonomy", fontsize=10)
    return figure


def draw_lengths(lengths: dict[str, np.ndarray]) -> "Figure":
    """Lengths of the originals and of their controls, from the tokens of the documents of each config."""
    figure = _new_figure(figsize=(10, 4))
    for axis, (one, other) in zip(figure.subplots(1, 2), PAIRS, strict=True):
        longest = max((int(lengths[name].max()) for name in (one, other) if len(lengths[name])), default=MIN_TOKENS)
        bins = np.unique(np.geomspace(MIN_TOKENS, max(longest + 1, 2 * MIN_TOKENS), 40).round())
        axis.hist(lengths[one], bins=bins, color=_BLUE, alpha=0.55, label=one)
        axis.hist(lengths[other], bins=bins, histtype="step", color=_ORANGE, linewidth=1.6, label=other)
        axis.set(xscale="log", xlabel="tokens", ylabel="documents")
        axis.spines[["top", "right"]].set_visible(False)
        _put_legend_above(axis)
    return figure
