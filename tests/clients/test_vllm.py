"""vLLM: greedy text and embeddings of a checkpoint, and of its plain Qwen3s, are transformers'."""

import os

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM, Qwen3Model

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
vllm = pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
CLIENTS = ("vllm-cpu",)


def load(folder, **options):
    return vllm.LLM(str(folder), dtype="float32", enforce_eager=True, max_model_len=128, max_num_seqs=4, **options)


@pytest.mark.parametrize("kind", ["checkpoint", "causal twin"])
def test_it_writes_what_transformers_writes(checkpoint, twins, tokenizer, sentences, kind):
    model = Qwen3ForCausalLM.from_pretrained(twins["causal"]).eval()
    settings = vllm.SamplingParams(temperature=0, max_tokens=12, logprobs=1)
    where, options = (checkpoint, {"trust_remote_code": True}) if kind == "checkpoint" else (twins["causal"], {})
    writer = load(where, runner="generate", **options)
    for sentence, found in zip(sentences, writer.generate(sentences, settings), strict=True):
        ids = tokenizer(sentence, return_tensors="pt").input_ids
        assert found.prompt_token_ids == ids[0].tolist()
        written = model.generate(ids, max_new_tokens=12, do_sample=False)
        (output,) = found.outputs
        assert output.token_ids == written[0, ids.shape[1] :].tolist()
        with torch.no_grad():
            expected = model(written).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1).amax(-1)
        logprobs = [step[token].logprob for token, step in zip(output.token_ids, output.logprobs, strict=True)]
        np.testing.assert_allclose(logprobs, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["checkpoint", "bidirectional twin"])
def test_it_embeds_bidirectionally_by_the_mean(checkpoint, twins, tokenizer, sentences, kind):
    model = Qwen3Model.from_pretrained(twins["bidirectional"]).eval()
    where, options = twins["bidirectional"], {}
    if kind == "checkpoint":
        where, options = checkpoint, {"trust_remote_code": True, "hf_overrides": {"is_causal": False}}
    embedder = load(where, runner="pooling", **options)
    for sentence, found in zip(sentences, embedder.embed(sentences), strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(sentence, return_tensors="pt"))[0][0].mean(0)
        np.testing.assert_allclose(found.outputs.embedding, expected, rtol=1e-3, atol=1e-4)
