"""onnxruntime: an ONNX export gives the checkpoint's logits, at any batch and length, padded or not."""

import numpy as np
import pytest
import torch

from flexqwen.hub.export import export
from modeling_flexqwen import FlexQwenForCausalLM, FlexQwenForMaskedLM

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
CLIENTS = ("onnxruntime", "onnx")


@pytest.mark.parametrize(("mode", "cls"), [("causal", FlexQwenForCausalLM), ("bidirectional", FlexQwenForMaskedLM)])
def test_logits_are_the_models(checkpoint, tokenizer, sentences, tmp_path, mode, cls):
    export(checkpoint, tmp_path / "onnx", mode, "onnx")
    model = cls.from_pretrained(checkpoint).eval()
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    for batch in (sentences, sentences[:1], [" ".join(sentences * 3)] * 5):
        inputs = tokenizer(batch, padding=True, return_tensors="pt")
        (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            expected = model(**inputs).logits
        real = inputs["attention_mask"].bool()
        np.testing.assert_allclose(found[real.numpy()], expected[real].numpy(), rtol=1e-3, atol=1e-3)


def test_int8_keeps_most_predictions(checkpoint, tokenizer, sentences, tmp_path):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    export(checkpoint, tmp_path / "onnx", "bidirectional", "onnx")
    small = tmp_path / "int8.onnx"
    quantize_dynamic(tmp_path / "onnx" / "model.onnx", small, weight_type=QuantType.QInt8)
    inputs = {name: value.numpy() for name, value in tokenizer(sentences[1], return_tensors="pt").items()}
    sessions = (onnxruntime.InferenceSession(path) for path in (tmp_path / "onnx" / "model.onnx", small))
    one, other = (session.run(None, inputs)[0].argmax(-1) for session in sessions)
    assert (one == other).mean() > 0.7
