"""The dataset card and its figures: what a reader has to know, in the form that the Hugging Face Hub reads."""

from bisect import bisect
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from jinja2 import StrictUndefined, Template

from flexqwen.data.corpus import MIN_TOKENS
from flexqwen.data.documents import BEYOND, encode_column, header_originality
from flexqwen.data.ngrams import mean_known
from flexqwen.data.splits import ALL, MIN_GAP, PAIRS, TOLERANCE
from flexqwen.data.texts import read_manifest
from flexqwen.drawing import save_figure, to_words
from flexqwen.files import write_text
from flexqwen.tables import format_cell, markdown_table

TEXTS = yaml.safe_load(Path(__file__).with_name("card.yaml").read_text(encoding="utf-8"))
CARD = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
SMALL = 1_000_000  # tokens of gold below which no model is worth its training
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")


def write_card(folder: Path) -> None:
    """Writes `<folder>/README.md` and `<folder>/figures/*.png` of a dataset that has all else."""
    manifest, index = read_manifest(folder), read_index(folder)
    other = "corpus" in manifest  # than Carolina: no header states a measure
    pairs = {name: pq.read_table(folder / "data" / name, columns=["typology", "tokens"]) for name in sum(PAIRS, ())}
    for name, figure in (
        ("header_and_ngram", None if other else draw_agreement(index)),
        ("originality_by_taxonomy", draw_taxonomies(index, "ngram_originality" if other else "originality")),
        ("length_gold_and_matched", draw_lengths({name: part["tokens"].to_numpy() for name, part in pairs.items()})),
    ):
        if figure:
            save_figure(figure, folder / "figures" / f"{name}.png", dpi=110)
    write_text(folder / "README.md", _fill_card(folder, manifest, index, pairs))


def list_cautions(manifest: dict[str, Any]) -> list[str]:
    """What has to be known before anything else of a build that is a sample, or a small one of real text."""
    cautions, kept = [], manifest["documents"]["kept"]
    if left := manifest["documents"]["dropped"].get(BEYOND):
        what = "copies in the others are not seen, so n-gram originality is overstated"
        cautions.append(f"a sample, {kept:,} of {kept + left:,} documents: {what}")
    found = {name: part for name in ("gold", ALL) if (part := manifest["splits"].get(f"{name}/train"))}
    for name, split in found.items():
        is_wanted = split["documents"] or len(found) == 1  # none is original where all are alike
        if is_wanted and split["tokens"] < SMALL and not manifest["generated"]:
            size = f"{split['tokens']:,} tokens, {split['size'].split(' (')[0]} documents asked for"
            cautions.append(f"{name} is too small to train a model on: {size}; take more")
    return cautions


def read_index(folder: Path) -> pa.Table:
    """What the card and `inspect` say of every document; columns of few distinct texts as dictionaries."""
    few = ["taxonomy", "typology", "license"]
    columns = [*few, "tokens", "originality", "ngram_originality"]
    return pq.read_table(folder / "data" / "index", columns=columns, read_dictionary=few).unify_dictionaries()


def count_by_taxonomy(index: pa.Table) -> Iterator[tuple]:
    """For each taxonomy, the largest first: name, documents, those of 21 tokens or more, tokens, both means."""
    (codes, names), tokens = encode_column(index, "taxonomy"), index["tokens"].to_numpy()
    measures = header_originality(index), index["ngram_originality"].to_numpy()
    for code in np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable"):
        part = codes == code
        if part.any():
            long = part & (tokens >= MIN_TOKENS)
            means = [mean_known(values[long]) for values in measures]
            yield names[code], int(part.sum()), int(long.sum()), int(tokens[part].sum()), *means


def _divide_by_typology(index: pa.Table, pairs: dict[str, pa.Table], most: int = 8) -> list[tuple]:
    """How the tokens of the paired configs divide over source typologies, in %; the header first."""
    names = encode_column(index, "typology")[1]
    weights = []
    for part in pairs.values():
        codes = pc.index_in(part["typology"], pa.array(names)).to_numpy()
        weights.append(np.bincount(codes, part["tokens"].to_numpy(), minlength=len(names)))
    percents = [100 * weight / max(1, weight.sum()) for weight in weights]
    order = np.argsort(-np.sum(weights, axis=0), kind="stable")[:most]
    rows = [(names[code], *(float(percent[code]) for percent in percents)) for code in order]
    return [("typology, % of tokens", *(f"`{config}`" for config in pairs)), *rows]


def list_splits(manifest: dict[str, Any]) -> list[tuple]:
    """Name, documents, tokens, means of both measures, and what was asked for, of each split."""
    values = ("documents", "tokens", "originality", "ngram_originality", "size")
    return [(name, *(split[value] for value in values)) for name, split in manifest["splits"].items()]


def _fill_card(folder: Path, manifest: dict[str, Any], index: pa.Table, pairs: dict[str, pa.Table]) -> str:
    codes, names = encode_column(index, "license")
    downloads, sizes = Counter(), Counter()
    for name, split in manifest["splits"].items():
        config, part = name.split("/")
        downloads[config] += sum(path.stat().st_size for path in (folder / "data" / config).glob(f"{part}-*"))
        sizes[config] += split["bytes"]
    corpus = manifest.get("corpus", "")
    texts = TEXTS["other" if "corpus" in manifest else "generated" if manifest["generated"] else "real"]
    texts = texts | {name: text.replace("{corpus}", corpus) for name, text in texts.items() if isinstance(text, str)}

    def table(header: Sequence[str], rows: Iterable[Sequence], text_columns: int | Collection[int] = 1) -> str:
        """A table of rows that begin with a name; names are set as code."""
        named = [(f"`{name}`" if name else "none named", *cells) for name, *cells in rows]
        return markdown_table(header, named, text_columns)

    found = {
        "texts": texts,
        "cautions": list_cautions(manifest),
        "size": _SIZES[bisect([10**power for power in range(3, 8)], manifest["documents"]["kept"])],
        "configs": {name: text for name, text in TEXTS["configs"].items() if name in sizes},
        "default": "gold" if manifest["splits"]["gold/train"]["documents"] or ALL not in sizes else ALL,
        "columns": [(name, *column) for name, column in (TEXTS["columns"] | texts.get("columns", {})).items()],
        "downloads": downloads,
        "sizes": sizes,
        "rows": list_splits(manifest),
        "taxonomies": count_by_taxonomy(index),
        "typologies": _divide_by_typology(index, pairs),
        "licences": sorted((-n, name) for n, name in zip(np.bincount(codes).tolist(), names, strict=False) if n),
        **{"min_tokens": MIN_TOKENS, "min_gap": MIN_GAP, "tolerance": TOLERANCE},
        **{"number": format_cell, "table": table},
    }
    template = Template(CARD, trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    return template.render(manifest | found)


_BLUE, _ORANGE = "#2a6f97", "#e07a1f"  # original, control
# A legend between title and frame, where no data can be under it.
_ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 2, "frameon": False}


def _new_figure(**options):
    from matplotlib.figure import Figure  # here, not above: no worker of a build needs it

    return Figure(**options)


def draw_agreement(index: pa.Table):
    """How many documents of at least 21 tokens have which originality, stated and recomputed."""
    header, ngram = header_originality(index), index["ngram_originality"].to_numpy()
    both = ~np.isnan(header) & ~np.isnan(ngram)
    figure = _new_figure(figsize=(6, 5))
    axes = figure.add_subplot()
    if both.any():
        options = {"bins": 50, "range": [[0, 100]] * 2, "norm": "log", "cmap": "viridis", "cmin": 1}
        image = axes.hist2d(header[both], ngram[both], **options)[3]
        figure.colorbar(image, label="documents")
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle="--", label="equal")
    axes.set(xlabel="originality stated in the header (%)", ylabel="recomputed: 7-grams held by no other (%)")
    axes.set_title(f"{both.sum():,} documents of at least {MIN_TOKENS} tokens", pad=28)
    axes.legend(**_ABOVE)
    return figure


def draw_taxonomies(index: pa.Table, measure: str = "originality"):
    """The originality that the headers state, or the recomputed one, for each taxonomy."""
    long = index["tokens"].to_numpy() >= MIN_TOKENS
    values = header_originality(index) if measure == "originality" else index[measure].to_numpy()
    codes, names = encode_column(index, "taxonomy")
    present = sorted(np.unique(codes), key=names.__getitem__)
    figure = _new_figure(figsize=(7, 1 + len(present)), layout="constrained")
    axes = figure.subplots(len(present), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, code in zip(axes, present, strict=True):
        part = long & (codes == code)
        weight = np.full(part.sum(), 100 / max(1, part.sum()))
        axis.hist(values[part], bins=np.arange(0, 105, 5), weights=weight, color=_BLUE, edgecolor="white")
        axis.set_title(f"{to_words(names[code]) or 'all'}: {part.sum():,} documents", loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    what = "originality stated in the header" if measure == "originality" else "n-gram originality"
    axes[-1].set(xlabel=f"{what} (%), documents of at least {MIN_TOKENS} tokens")
    figure.supylabel("% of the documents", fontsize=10)
    return figure


def draw_lengths(lengths: dict[str, np.ndarray]):
    """Lengths of the originals and of their controls, from the tokens of the documents of each config that has some."""
    pairs = [pair for pair in PAIRS if len(lengths[pair[0]])] or PAIRS[:1]
    figure = _new_figure(figsize=(5 * len(pairs), 4))
    for axis, (one, other) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        longest = max((int(lengths[name].max()) for name in (one, other) if len(lengths[name])), default=MIN_TOKENS)
        bins = np.unique(np.geomspace(MIN_TOKENS, max(longest + 1, 2 * MIN_TOKENS), 40).round())
        axis.hist(lengths[one], bins=bins, color=_BLUE, alpha=0.55, label=to_words(one))
        axis.hist(lengths[other], bins=bins, histtype="step", color=_ORANGE, linewidth=1.6, label=to_words(other))
        axis.set(xscale="log", xlabel="tokens", ylabel="documents")
        ticks = [tick for power in range(1, 8) for tick in (10**power, 3 * 10**power) if bins[0] <= tick <= bins[-1]]
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()  # whose labels would overlap
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(**_ABOVE)
    return figure
