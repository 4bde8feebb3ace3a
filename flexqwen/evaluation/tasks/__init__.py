"""Evaluation tasks by name: each a module with a `VERSION`, to be raised whenever its figures change.

A likelihood task has `load(context)`, its items, and `evaluate(scorer, items, mode, context)`, their results. A
fine-tuned task has `run(model_folder, folder of its data, settings)`, its results, and a `FOLDER` where that
has another name.
"""

from flexqwen.evaluation.tasks import (
    arc_pt,
    bits_per_byte,
    bits_per_byte_ud,
    calame_pt,
    minimal_pairs,
    mpararel_pt,
    multiblimp_por,
    wsc_pt,
)

TASKS = {
    "bits_per_byte": bits_per_byte,
    "bits_per_byte_ud": bits_per_byte_ud,
    "minimal_pairs": minimal_pairs,
    "wsc_pt": wsc_pt,
    "mpararel_pt": mpararel_pt,
    "arc_pt": arc_pt,
    "multiblimp_por": multiblimp_por,
    "calame_pt": calame_pt,
}
ON_THE_HUB = ("multiblimp_por", "calame_pt")
FINE_TUNED = {
    name: f"flexqwen.evaluation.tasks.{name}"
    for name in ("assin2", "harem", "bosque_pos", "hatebr", "toldbr", "faquad")
}
"""Modules by their dotted names: they are imported when they are asked for, since their libraries are many."""
