"""Evaluation tasks by name: each a module with a `VERSION`, to be raised whenever its figures change."""

from flexqwen.tasks import bits_per_byte

TASKS = {"bits_per_byte": bits_per_byte}
