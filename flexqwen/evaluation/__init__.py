"""A checkpoint to figures with their intervals: likelihood, fine-tuned tasks, results."""

MODES = ("causal", "masked", "fused")
