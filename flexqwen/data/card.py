"""The dataset card and its figures: what a reader has to know, in the form that the Hugging Face Hub reads.

Both are made from the finished folder, its manifest and its Parquet files: a changed card needs no shard.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from flexqwen.data.corpus import MIN_TOKENS
from flexqwen.data.splits import MIN_GAP, TOLERANCE
from flexqwen.data.texts import read_manifest
from flexqwen.drawing import save_figure
from flexqwen.files import atomic_write
from flexqwen.tables import format_cell, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = {
    "id": ("string", "the corpus's own identifier"),
    "text": ("string", "the text; paragraphs are separated by newlines"),
    "taxonomy": ("string", "part of the corpus, such as `wikis`"),
    "typology": ("string", "source typology, such as `TWEET_VIR_W`"),
    "language": ("string", "`pt` or `pt-BR`"),
    "license": ("string", "address of the licence that the document's header names"),
    "source": ("string", "address that the text was taken from"),
    "tokens": ("int32", "length in white-space-separated tokens, from the header"),
    "originality": ("int32", f"the header's own measure, 0–100; a meaningless 0 under {MIN_TOKENS} tokens"),
    "ngram_originality": ("float64", "recomputed: percentage of the word 7-grams that no other document holds"),
}

_CONFIGS = {
    "gold": "the most original documents that have a control",
    "matched": "the control of `gold`: row by row a less original document of the same length",
    "gold_typology": "the original document of each pair of one length *and* one source typology",
    "matched_typology": "the control of `gold_typology`, row by row",
    "tokenizer": "a random sample of the corpus, in no other training config",
    "heldout": "validation and test, three strata of each; see below",
    "index": "every document's identifier, length and scores, without text",
}

_REAL = {
    "title": "Carolina Originality",
    "what": """\
Documents of Corpus Carolina, a general corpus of contemporary Brazilian Portuguese, chosen by how **original** they
are: what share of a document stands in no other one.""",
    "source": """\
The texts come from Corpus Carolina (C4AI, University of São Paulo; `carolina-c4ai/corpus-carolina` on the Hugging Face
Hub), whose headers are CC BY 4.0. **Each text keeps the licence that its header names**, in the column `license`:""",
    "caution": "Texts are as the corpus has them: they may hold personal data, mistakes and offensive language.",
}
_GENERATED = {
    "title": "Carolina Originality, generated sample",
    "what": """\
**A sample, not Corpus Carolina: every text here was generated** by FlexQwen's `sample` command, in the corpus's format
and with copied passages planted, so that the tools can be tried. No person wrote it, and what a model learns from it
says nothing about Portuguese. The documents are chosen by how **original** they are: what share of a document stands in
no other one.""",
    "source": """\
The texts come from FlexQwen's `sample` command and are Apache-2.0, as it is. Addresses in the columns `source` and
`license` are made up or stand where the corpus would have them:""",
    "caution": "Texts are made by a grammar: they hold no personal data, and no sense.",
}
_PAIRS = (("gold", "matched"), ("gold_typology", "matched_typology"))


def write_card(folder: Path) -> None:
    """Writes `<folder>/README.md` and `<folder>/figures/*.png` of a dataset that has all else."""
    manifest, index = read_manifest(folder), read_index(folder)
    pairs = {
        config: pq.read_table(folder / "data" / config, columns=["typology", "tokens"])
        for pair in _PAIRS
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
    for config in _CONFIGS:
        splits = {
            name.split("/")[1]: size for name, size in manifest["splits"].items() if name.startswith(f"{config}/")
        }
        files = [{"split": split, "path": f"data/{config}/{split}-*.parquet"} for split in splits]
        configs.append({"config_name": config, "data_files": files} | ({"default": True} if config == "gold" else {}))
        columns = [(name, dtype) for name, (dtype, _) in COLUMNS.items() if (config, name) != ("index", "text")]
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
    documents = manifest["documents"]["kept"]
    bounds = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
    source = {
        "license": "other",
        "license_name": "per-document",
        "license_link": "https://huggingface.co/datasets/carolina-c4ai/corpus-carolina",
        "source_datasets": ["carolina-c4ai/corpus-carolina"],
    }
    tags = ["originality", "deduplication", "data-efficiency", "portuguese"]
    if manifest["generated"]:
        source = {"license": "apache-2.0", "source_datasets": ["original"]}
        tags.append("synthetic")
    return {
        "pretty_name": (_GENERATED if manifest["generated"] else _REAL)["title"],
        "language": ["pt"],
        **source,
        "task_categories": ["text-generation", "fill-mask"],
        "size_categories": [next((name for bound, name in bounds if documents < bound), "10M<n<100M")],
        "tags": tags,
        "configs": configs,
        "dataset_info": info,
    }


def _quote(name: str) -> str:
    return f"`{name}`" if name else "none named"


def _tabulate_typologies(index: pa.Table, pairs: dict[str, pa.Table], most: int = 8) -> str:
    """How the tokens of the paired configs divide over source typologies."""
    names = _codes(index, "typology")[1]
    weights = []
    for part in pairs.values():
        codes = pc.index_in(part["typology"], pa.array(names)).to_numpy()
        weights.append(np.bincount(codes, part["tokens"].to_numpy(), minlength=len(names)))
    percents = [100 * weight / max(1, weight.sum()) for weight in weights]
    order = np.argsort(-np.sum(weights, axis=0), kind="stable")[:most]
    rows = [(_quote(names[code]), *(float(percent[code]) for percent in percents)) for code in order]
    return markdown_table(("typology, % of tokens", *(f"`{config}`" for config in pairs)), rows)


def _tabulate_agreement(manifest: dict[str, Any]) -> str:
    """How the header's measure and the recomputed one agree."""
    agreement = manifest["agreement"]
    if not {"column", "among_long"} <= agreement.keys():
        return "There are too few documents to compare the two."
    what = {
        "column": "what any document shares, as in the column",
        "among_long": f"what documents of at least {MIN_TOKENS} tokens share, as the header seems to",
    }
    rows = [
        (
            text,
            f"{agreement[name]['pearson']:.3f}",
            f"{agreement[name]['spearman']:.3f}",
            agreement[name]["mean_absolute_difference"],
        )
        for name, text in what.items()
    ]
    whole = "The header was computed over the whole corpus, this over the shards at hand."
    return (
        f"Over the {agreement['documents']:,} documents of at least {MIN_TOKENS} tokens:\n\n"
        + markdown_table(("what counts as a copy", "Pearson", "Spearman", "mean absolute difference"), rows)
        + ("\n" if manifest["generated"] else f"\n\n{whole}")
    )


def _write_body(manifest: dict[str, Any], index: pa.Table, pairs: dict[str, pa.Table]) -> str:
    """The text of `card.md`, filled in."""
    shards, documents = manifest["shards"], manifest["documents"]
    codes, names = _codes(index, "license")
    licences = sorted((-count, names[code]) for code, count in enumerate(np.bincount(codes).tolist()) if count)
    checks = [
        (name, f"{result['value']:g}", " ".join((limit.replace("_", " "), str(result[limit]))))
        for name, result in manifest["checks"].items()
        for limit in result.keys() - {"value", "passed"}
    ]
    columns = ("documents", "tokens", "originality", "ngram_originality", "size")
    return (
        Path(__file__)
        .with_name("card.md")
        .read_text(encoding="utf-8")
        .format(
            **(_GENERATED if manifest["generated"] else _REAL),
            shards=format_cell(len(shards["used"])),
            read=format_cell(documents["read"]),
            kept=format_cell(documents["kept"]),
            dropped="; ".join(f"{count:,} {reason}" for reason, count in documents["dropped"].items()) or "none",
            absent=f" Of the listed shards {len(shards['absent']):,} were absent." if shards["absent"] else "",
            bad=f" {len(shards['bad']):,} bad shards were left out: see `manifest.json`." if shards["bad"] else "",
            configs=markdown_table(
                ("config", "what it holds"), [(f"`{name}`", text) for name, text in _CONFIGS.items()], 2
            ),
            sizes=markdown_table(
                ("split", "documents", "tokens", "originality", "n-gram originality", "of the size asked for"),
                [(f"`{name}`", *(split[column] for column in columns)) for name, split in manifest["splits"].items()],
                text_columns=(0, 5),
            ),
            columns=markdown_table(
                ("column", "type", "what it is"), [(f"`{name}`", *column) for name, column in COLUMNS.items()], 3
            ),
            measure={"header": "`originality`", "ngram": "`ngram_originality`"}[manifest["parameters"]["measure"]],
            agreement=_tabulate_agreement(manifest),
            by_taxonomy=markdown_table(
                (
                    "taxonomy",
                    "documents",
                    f"of {MIN_TOKENS} tokens or more",
                    "tokens",
                    "originality",
                    "n-gram originality",
                ),
                [(_quote(name), *counts) for name, *counts in count_by_taxonomy(index)],
            ),
            by_typology=_tabulate_typologies(index, pairs),
            checks=markdown_table(("check", "value", "allowed"), checks, 3),
            licences=markdown_table(
                ("licence", "documents"),
                [
                    (name or "none named", count)
                    for name, count in sorted(licences.items(), key=lambda row: (-row[1], row[0]))
                ],
            ),
            min_tokens=MIN_TOKENS,
            min_gap=MIN_GAP,
            tolerance=TOLERANCE,
        )
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
    for axis, (one, other) in zip(figure.subplots(1, 2), _PAIRS, strict=True):
        longest = max((int(lengths[name].max()) for name in (one, other) if len(lengths[name])), default=MIN_TOKENS)
        bins = np.unique(np.geomspace(MIN_TOKENS, max(longest + 1, 2 * MIN_TOKENS), 40).round())
        axis.hist(lengths[one], bins=bins, color=_BLUE, alpha=0.55, label=one)
        axis.hist(lengths[other], bins=bins, histtype="step", color=_ORANGE, linewidth=1.6, label=other)
        axis.set(xscale="log", xlabel="tokens", ylabel="documents")
        axis.spines[["top", "right"]].set_visible(False)
        _put_legend_above(axis)
    return figure
