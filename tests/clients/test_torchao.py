"""torchao: weights in int8, the head's too, leave loss, logits and greedy text near those in float32."""

import pytest
import torch
from transformers import TorchAoConfig

from modeling_flexqwen import FlexQwenForCausalLM, FlexQwenForMaskedLM
from tests.helpers.tiny import make_ids, make_model

quantization = pytest.importorskip("torchao.quantization")
CLIENTS = ("torchao",)
WAYS = {
    "weights": quantization.Int8WeightOnlyConfig,
    "weights and activations": quantization.Int8DynamicActivationInt8WeightConfig,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", [FlexQwenForCausalLM, FlexQwenForMaskedLM])
def test_the_loss_is_that_of_the_quantised_logits(cls, way, tied):
    model, ids = make_model(cls, tie_word_embeddings=tied), make_ids()
    labels = ids.masked_fill(torch.arange(ids.shape[1]) == 0, -100)
    with torch.no_grad():
        in_float = model(ids, labels=labels)
        quantization.quantize_(model, WAYS[way](version=2))
        assert type(model.lm_head.weight) is not torch.nn.Parameter
        found = model(ids, labels=labels)
        shift = cls is FlexQwenForCausalLM
        logits, targets = found.logits[:, : -1 if shift else None], labels[:, 1 if shift else 0 :]
        own = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        in_training = model.train()(ids, labels=labels).loss
    for loss in (found.loss, in_training):
        torch.testing.assert_close(loss, own, rtol=1e-4, atol=0)
    assert 0 < (found.logits - in_float.logits).abs().max() < 0.03 * in_float.logits.abs().max()


@pytest.mark.parametrize("way", WAYS)
def test_loaded_in_int8_it_writes_what_the_model_finds_best(checkpoint, way):
    loaded = FlexQwenForCausalLM.from_pretrained(
        checkpoint, quantization_config=TorchAoConfig(WAYS[way](version=2)), dtype=torch.float32
    ).eval()
    assert type(loaded.model.layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
    assert type(loaded.lm_head.weight) is torch.nn.Parameter  # left as it is, unlike above
    ids = make_ids(batch=3)
    written = loaded.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    with torch.no_grad():
        logits = FlexQwenForCausalLM.from_pretrained(checkpoint).eval()(written).logits[:, ids.shape[1] - 1 : -1]
    logits[..., loaded.config.eos_token_id] = -torch.inf  # which min_new_tokens forbids
    chosen = logits.gather(-1, written[:, ids.shape[1] :, None])[..., 0]
    assert (logits.amax(-1) - chosen).max() < 0.05 * chosen.abs().max()
