"""What `forked_context` imports once: all that a process of a test may need, so that none waits for imports."""

import gc
import importlib

from tests.helpers.figures import render_no_figures

COMMANDS = ("carolina_originality", "eval", "train", "flexqwen.study.commands")
LATER = ("lxml.etree", "scipy.stats", "torch.utils.tensorboard", "tests.helpers.runs")  # what these import as they run
LATER += ("flexqwen.hub.publisher", "flexqwen.training.trainer", "flexqwen.evaluation.run_tasks", "flexqwen.data.build")

for name in (*COMMANDS, *LATER):
    importlib.import_module(name)
render_no_figures()
gc.collect()
gc.freeze()  # a forked process does not look through these again
