"""The dataset card and its figures: what a reader has to know, in the form that the Hugging Face Hub reads."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from flexqwen.data.corpus import MIN_TOKENS
from flexqwen.data.splits import MIN_GAP, TOLERANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flexqwen.data.build import Scored
    from flexqwen.data.splits import Splits

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

_BOUNDS = ("at_most", "at_least", "below")
_CONFIGS = {
    "gold": "the most original documents that have a control",
    "matched": "the control of `gold`: row by row a less original document of the same length",
    "gold_typology": "the original document of each pair of one length *and* one source typology",
    "matched_typology": "the control of `gold_typology`, row by row",
    "tokenizer": "a random sample of the corpus, in no other training config",
    "heldout": "validation and test, three strata of each; see below",
    "index": "every document's identifier, length and scores, without text",
}

_REAL = """\
Documents of Corpus Carolina, a general corpus of contemporary Brazilian Portuguese, chosen by how **original** they
are: what share of a document stands in no other one."""
_GENERATED = """\
**A sample, not Corpus Carolina: every text here was generated** by FlexQwen's `sample` command, in the corpus's format
and with copied passages planted, so that the tools can be tried. No person wrote it, and what a model learns from it
says nothing about Portuguese. The documents are chosen by how **original** they are: what share of a document stands in
no other one."""
_REAL_SOURCE = """\
The texts come from Corpus Carolina (C4AI, University of São Paulo; `carolina-c4ai/corpus-carolina` on the Hugging Face
Hub), whose headers are CC BY 4.0. **Each text keeps the licence that its header names**, in the column `license`:"""
_GENERATED_SOURCE = """\
The texts come from FlexQwen's `sample` command and are Apache-2.0, as it is. Addresses in the columns `source` and
`license` are made up or stand where the corpus would have them:"""
_REAL_CAUTION = "Texts are as the corpus has them: they may hold personal data, mistakes and offensive language."
_GENERATED_CAUTION = "Texts are made by a grammar: they hold no personal data, and no sense."


def write_card(folder: Path, manifest: dict[str, Any], scored: "Scored", chosen: "Splits") -> None:
    """Writes `<folder>/README.md` and `<folder>/figures/*.png`."""
    _draw(folder / "figures", scored, chosen)
    front = yaml.safe_dump(_front_matter(folder, manifest), sort_keys=False, allow_unicode=True, width=120)
    (folder / "README.md").write_text(f"---\n{front}---\n\n{_body(manifest, scored, chosen)}", encoding="utf-8")


def _front_matter(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    configs, info = [], []
    for config in _CONFIGS:
        names = [name for name in manifest["splits"] if name.startswith(f"{config}/")]
        splits = [name.split("/")[1] for name in names]
        files = [{"split": split, "path": f"data/{config}/{split}-*.parquet"} for split in splits]
        configs.append({"config_name": config, "data_files": files} | ({"default": True} if config == "gold" else {}))
        sizes = [manifest["splits"][name] for name in names]
        columns = [(name, dtype) for name, (dtype, _) in COLUMNS.items() if (config, name) != ("index", "text")]
        info.append(
            {
                "config_name": config,
                "features": [{"name": name, "dtype": dtype} for name, dtype in columns],
                "splits": [
                    {"name": split, "num_bytes": size["bytes"], "num_examples": size["documents"]}
                    for split, size in zip(splits, sizes, strict=True)
                ],
                "download_size": sum(path.stat().st_size for path in (folder / "data" / config).iterdir()),
                "dataset_size": sum(size["bytes"] for size in sizes),
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
        "pretty_name": _title(manifest),
        "language": ["pt"],
        **source,
        "task_categories": ["text-generation", "fill-mask"],
        "size_categories": [next((name for bound, name in bounds if documents < bound), "10M<n<100M")],
        "tags": tags,
        "configs": configs,
        "dataset_info": info,
    }


def _title(manifest: dict[str, Any]) -> str:
    return "Carolina Originality, generated sample" if manifest["generated"] else "Carolina Originality"


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; numbers are aligned right and written with thousands separators."""
    rows = [list(row) for row in rows]
    right = [bool(rows) and not isinstance(cell, str) for cell in rows[0]] if rows else []
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join("---:" if r else "---" for r in right) + "|"]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or value != value:  # NaN
        return "–"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _by(scored: "Scored", column: str) -> list[tuple]:
    """For each value of a column: documents, those of at least 21 tokens, tokens, mean originality of both measures."""
    names = scored.names(column)
    codes = scored.codes(column)
    rows = []
    for code in np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable"):
        part = np.flatnonzero(codes == code)
        if not len(part):
            continue
        long = part[scored.tokens[part] >= MIN_TOKENS]
        means = (_mean(scored.header[long]), _mean(scored.ngram[long]))
        rows.append((_named(names[code]), len(part), len(long), int(scored.tokens[part].sum()), *means))
    return rows


def _named(name: str) -> str:
    return f"`{name}`" if name else "none named"


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _shares(scored: "Scored", chosen: "Splits", most: int = 8) -> str:
    """Table: how the tokens of the paired configs divide over source typologies."""
    names = scored.names("typology")
    codes = scored.codes("typology")
    configs = ("gold", "matched", "gold_typology", "matched_typology")
    weights = [
        np.bincount(codes[chosen.training[c]], scored.tokens[chosen.training[c]], minlength=len(names)) for c in configs
    ]
    percents = [100 * weight / max(1, weight.sum()) for weight in weights]
    order = np.argsort(-np.sum(weights, axis=0), kind="stable")[:most]
    rows = [(_named(names[i]), *(float(percent[i]) for percent in percents)) for i in order]
    return _table(("typology, % of tokens", *(f"`{config}`" for config in configs)), rows)


def _agrees(found: dict[str, float]) -> str:
    """Cells of a table."""
    return f"{found['pearson']:.3f} | {found['spearman']:.3f} | {found['mean_absolute_difference']:.1f}"


def _body(manifest: dict[str, Any], scored: "Scored", chosen: "Splits") -> str:
    splits, shards, kept = manifest["splits"], manifest["shards"], manifest["documents"]
    generated = manifest["generated"]
    measure = {"header": "`originality`", "ngram": "`ngram_originality`"}[manifest["parameters"]["measure"]]
    agreement = manifest["agreement"]
    agrees = "There are too few documents to compare the two."
    if "column" in agreement and "among_long" in agreement:
        whole = "" if generated else "\nThe header was computed over the whole corpus, this over the shards at hand."
        agrees = f"""\
Over the {agreement["documents"]:,} documents of at least {MIN_TOKENS} tokens:

| what counts as a copy | Pearson | Spearman | mean absolute difference |
|---|---:|---:|---:|
| what any document shares, as in the column | {_agrees(agreement["column"])} |
| what documents of at least {MIN_TOKENS} tokens share, as the header seems to | {_agrees(agreement["among_long"])} |
{whole}"""
    absent = f" Of the listed shards {len(shards['absent']):,} were absent." if shards["absent"] else ""
    bad = f" {len(shards['bad']):,} bad shards were left out: see `manifest.json`." if shards["bad"] else ""
    dropped = "; ".join(f"{count:,} {reason}" for reason, count in kept["dropped"].items()) or "none"
    counts = np.bincount(scored.codes("license"), minlength=len(scored.names("license"))).tolist()
    licenses = sorted(zip(scored.names("license"), counts, strict=True), key=lambda row: (-row[1], row[0]))
    failed = [name for name, result in manifest["checks"].items() if not result["passed"]]
    checks = [
        (
            name,
            f"{result['value']:g}",
            next(f"{k.replace('_', ' ')} {v}" for k, v in result.items() if k not in ("value", "passed")),
        )
        for name, result in manifest["checks"].items()
    ]
    sizes = _table(
        ("split", "documents", "tokens", "originality", "n-gram originality", "of the size asked for"),
        (
            (f"`{n}`", s["documents"], s["tokens"], s["originality"], s["ngram_originality"], s["size"])
            for n, s in splits.items()
        ),
    )
    by_taxonomy = _table(
        ("taxonomy", "documents", f"of {MIN_TOKENS} tokens or more", "tokens", "originality", "n-gram originality"),
        _by(scored, "taxonomy"),
    )
    return f"""\
# {_title(manifest)}

{_GENERATED if generated else _REAL}

The dataset is made to ask what originality is worth in pre-training: train one model on `gold`, another on
`matched`, and compare them on `heldout`.

```python
from datasets import load_dataset

gold = load_dataset("carolina_originality", "gold", split="train")
matched = load_dataset("carolina_originality", "matched", split="train", streaming=True)
```

Built by FlexQwen from {len(shards["used"]):,} shards: {kept["read"]:,} documents read, {kept["kept"]:,} kept
(dropped: {dropped}).{absent}{bad}
`manifest.json` names every shard with its digest, every parameter and every check.

## Configs

{_table(("config", "what it holds"), ((f"`{name}`", text) for name, text in _CONFIGS.items()))}

{sizes}

Means are over documents of at least {MIN_TOKENS} tokens: below that the header's measure is not defined. Sizes are
those of the whole corpus (500,000 gold, 500,000 matched, 324,000 tokenizer documents of 2,100,000), scaled to the
documents at hand.

{_table(("column", "type", "what it is"), ((f"`{name}`", *column) for name, column in COLUMNS.items()))}

`index` has no `text`.

## Originality

`originality` is the corpus's own measure, as its headers state it. `ngram_originality` was recomputed here: the
percentage of a document's word 7-grams (words as white space separates them, by position) that no other document of
this build holds; null for a document of fewer than seven words. This build chose its splits by {measure}.

How the two agree. {agrees}

![Header against recomputed originality](figures/header_and_ngram.png)

{by_taxonomy}

![Originality by taxonomy](figures/originality_by_taxonomy.png)

## How the splits are made

Documents of at least {MIN_TOKENS} tokens are cut into classes of length no wider than {TOLERANCE:.0%}. In each class
the most original document is paired with the least original, the second with the second last, and so on, while the two
are at least {MIN_GAP} points apart. The originals make `gold`, their partners `matched`: row *i* of one is the control
of row *i* of the other. Rows are in random order. `tokenizer` and the random held-out documents are drawn from the
whole corpus before.

![Length of gold and matched](figures/length_gold_and_matched.png)

**Typology confounds originality.** In Corpus Carolina, tweets and product reviews are nearly all original, encyclopedia
stubs made from one template are not: `gold` and `matched` have one distribution of lengths, but they are not the same
kinds of text, and a difference between models trained on them may come from the kind. `gold_typology` and
`matched_typology` answer for that: each pair there has one source typology.

{_shares(scored, chosen)}

**Held-out.** `validation` and `test` are random samples of the corpus, short documents included. `*_original` and
`*_unoriginal` are pairs like those of `gold` and `matched`, set aside at random before training documents were taken:
judge each model on both. No training document has half or more of its word 13-grams in the held-out documents; those
that had were left out, with their partners.

{_table(("check", "value", "allowed"), checks)}

{"All checks passed." if not failed else "Failed: " + "; ".join(failed)}

## Licence and source

{_GENERATED_SOURCE if generated else _REAL_SOURCE}

{_table(("licence", "documents"), ((name or "none named", count) for name, count in licenses if count))}

{_GENERATED_CAUTION if generated else _REAL_CAUTION}
"""


# Figures. Colours: original blue, control orange, everywhere.

_BLUE, _ORANGE = "#2a6f97", "#e07a1f"


def _draw(folder: Path, scored: "Scored", chosen: "Splits") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ("header_and_ngram", header_figure(scored)),
        ("originality_by_taxonomy", taxonomy_figure(scored)),
        ("length_gold_and_matched", length_figure(scored.tokens, chosen.training)),
    ):
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight", metadata={"Software": None})


def _legend_above(axis: "Axes") -> None:
    """A legend between title and frame, where no data can be under it."""
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)


def header_figure(scored: "Scored") -> "Figure":
    """How many documents of at least 21 tokens have which originality, stated and recomputed."""
    from matplotlib.figure import Figure

    both = (scored.tokens >= MIN_TOKENS) & ~np.isnan(scored.header) & ~np.isnan(scored.ngram)

    figure = Figure(figsize=(6, 5))
    axes = figure.add_subplot()
    if both.any():
        image = axes.hist2d(
            scored.header[both], scored.ngram[both], bins=50, range=[[0, 100]] * 2, norm="log", cmap="viridis", cmin=1
        )[3]
        figure.colorbar(image, label="documents")
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle="--", label="equal")
    axes.set(xlabel="originality stated in the header (%)", ylabel="recomputed: 7-grams held by no other (%)")
    axes.set_title(f"{both.sum():,} documents of at least {MIN_TOKENS} tokens", pad=28)
    _legend_above(axes)
    return figure


def taxonomy_figure(scored: "Scored") -> "Figure":
    """The originality that the headers state, for each taxonomy."""
    from matplotlib.figure import Figure

    long = scored.tokens >= MIN_TOKENS
    names = scored.names("taxonomy")
    codes = scored.codes("taxonomy")
    present = sorted(np.unique(codes), key=names.__getitem__)
    figure = Figure(figsize=(7, 1 + len(present)), layout="constrained")
    axes = figure.subplots(len(present), 1, sharex=True, squeeze=False)[:, 0]
    for axis, code in zip(axes, present, strict=True):
        part = long & (codes == code)
        weight = np.full(part.sum(), 100 / max(1, part.sum()))
        axis.hist(scored.header[part], bins=np.arange(0, 105, 5), weights=weight, color=_BLUE, edgecolor="white")
        axis.set_title(f"{names[code]}: {part.sum():,} documents", loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set(xlabel=f"originality stated in the header (%), documents of at least {MIN_TOKENS} tokens")
    figure.supylabel("% of the documents of each taxonomy", fontsize=10)
    return figure


def length_figure(tokens: np.ndarray, training: dict[str, np.ndarray]) -> "Figure":
    """Lengths of the originals and of their controls, from the tokens of all documents and the documents of configs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4))
    for axis, (one, other) in zip(
        figure.subplots(1, 2), (("gold", "matched"), ("gold_typology", "matched_typology")), strict=True
    ):
        lengths = [tokens[training[config]] for config in (one, other)]
        longest = max((int(length.max()) for length in lengths if len(length)), default=MIN_TOKENS) + 1
        bins = np.unique(np.geomspace(MIN_TOKENS, max(longest, 2 * MIN_TOKENS), 40).round())
        axis.hist(lengths[0], bins=bins, color=_BLUE, alpha=0.55, label=one)
        axis.hist(lengths[1], bins=bins, histtype="step", color=_ORANGE, linewidth=1.6, label=other)
        axis.set(xscale="log", xlabel="tokens", ylabel="documents")
        axis.spines[["top", "right"]].set_visible(False)
        _legend_above(axis)
    return figure
