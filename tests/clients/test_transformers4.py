"""transformers 4: it loads the causal Qwen3 and its tokenizer; ids, logits and greedy text are the checkpoint's.

That program stands in an environment of its own, whose interpreter TRANSFORMERS4_PYTHON names.
"""

import json
import os
import subprocess

import pytest
import torch
from transformers import AutoTokenizer

from flexqwen.files import read_json
from flexqwen.hub.export import export
from modeling_flexqwen import FlexQwenForCausalLM
from tests.helpers.tiny import make_model

SENTENCE = "O Brasil é um país grande."
ASKED = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
model, tokenizer = (cls.from_pretrained(sys.argv[1]) for cls in (AutoModelForCausalLM, AutoTokenizer))
inputs = tokenizer(sys.argv[2], return_tensors="pt")
written = model.generate(**inputs, max_new_tokens=8, do_sample=False)
logits = model(**inputs).logits
print(json.dumps([__version__, tokenizer.mask_token, written[0].tolist(), logits[0].tolist()]))
"""


def test_the_export_has_the_names_that_transformers_4_reads(checkpoint, twins):
    for mode in ("causal", "bidirectional"):
        config, settings = (read_json(twins[mode] / f"{name}.json") for name in ("config", "tokenizer_config"))
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert type(AutoTokenizer.from_pretrained(twins[mode])) is type(AutoTokenizer.from_pretrained(checkpoint))


@pytest.mark.skipif("TRANSFORMERS4_PYTHON" not in os.environ, reason="make test-transformers4 names its interpreter")
@pytest.mark.parametrize("rope_theta", [10_000.0, 1_000_000.0])
def test_transformers_4_loads_the_export(tokenizer, tmp_path, rope_theta):
    rope = {"rope_type": "default", "rope_theta": rope_theta}
    model = make_model(vocab_size=len(tokenizer), rope_parameters=rope)
    model.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "qwen3")
    command = [os.environ["TRANSFORMERS4_PYTHON"], "-c", ASKED, str(tmp_path / "qwen3"), SENTENCE]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    version, mask_token, written, logits = json.loads(done.stdout)
    assert version.startswith("4.") and mask_token == tokenizer.mask_token
    inputs = AutoTokenizer.from_pretrained(tmp_path / "qwen3")(SENTENCE, return_tensors="pt")
    loaded = FlexQwenForCausalLM.from_pretrained(tmp_path / "checkpoint").eval()
    assert written == loaded.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()
    torch.testing.assert_close(torch.tensor(logits), loaded(**inputs).logits[0], atol=1e-5, rtol=0)
