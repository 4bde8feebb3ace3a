"""Saved models load from their folder alone, in a new process, with every Auto class."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from tests.helpers.tiny import CLASSES, make_model

IN_A_NEW_PROCESS = """
import json, sys, torch, transformers
for where in json.loads(sys.argv[1]):
    found = {}
    for name in sys.argv[2:]:
        loaded = getattr(transformers, name).from_pretrained(**where, trust_remote_code=True)
        found[name] = type(loaded).__name__
        if name == "AutoModelForCausalLM":
            found["logits"] = loaded(torch.arange(4, 16)[None]).logits.sum().item()
    print(json.dumps(found))
"""


def test_a_saved_model_loads_in_a_new_process_in_another_folder(tmp_path):
    model = make_model()
    checkpoint = tmp_path / "repo" / "run" / "best"
    model.save_pretrained(checkpoint)
    model.config.save_pretrained(tmp_path / "root")  # brings the code along
    shutil.copy(checkpoint / "modeling_flexqwen.py", tmp_path / "root")
    shutil.copytree(checkpoint, tmp_path / "root" / "run" / "best")
    where = [
        {"pretrained_model_name_or_path": str(checkpoint)},
        {"pretrained_model_name_or_path": str(tmp_path / "root"), "subfolder": "run/best"},
    ]
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, json.dumps(where), *CLASSES],
        cwd=tmp_path / "elsewhere",
        env={"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    logits = pytest.approx(model(torch.arange(4, 16)[None]).logits.sum().item(), rel=1e-4)
    assert [json.loads(line) for line in done.stdout.splitlines()[-2:]] == [{**CLASSES, "logits": logits}] * 2
