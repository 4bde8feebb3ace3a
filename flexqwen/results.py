"""A figure of an evaluation, with all that must stand beside it."""

from dataclasses import dataclass, field


@dataclass
class Result:
    """One metric of one task in one mode.

    Attributes:
        task, version: name and version of the task; figures of different versions are not compared.
        mode: "causal", "masked", "fused" or "finetuned".
        interval: 95 % bootstrap interval of `value`, over items, and over seeds where there are several.
        n: number of items.
        baseline, baseline_name: chance or majority level, and what it is.
        subset: the part of the items, or the variant of the task, that the figure speaks of.
        details: per-seed values, chosen learning rate, dev scores and the like.
        items: one number an item, mean over seeds, for paired comparison; None where the metric has none.
        item_ids: the items' names, in the order of `items`.
    """

    task: str
    version: int
    mode: str
    metric: str
    value: float
    interval: list[float]
    n: int
    baseline: float
    baseline_name: str
    subset: str = "all"
    details: dict = field(default_factory=dict)
    items: list[float] | None = None
    item_ids: list[str] | None = None
