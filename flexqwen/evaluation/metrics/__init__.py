"""Metrics as modules of Hugging Face's `evaluate`: `evaluate.load("flexqwen/evaluation/metrics/bpb")`.

Each module stands alone, so that its folder can be copied or published as it is. Its plain function is what eval.py and
the fine-tuned tasks call; `compute()` calls the same.
"""
