"""Writes a checkpoint as an ONNX program, which onnxruntime runs, through `torch.onnx`."""

from pathlib import Path

import torch

from flexqwen.cli import InputError
from flexqwen.files import atomic_write

OPSET = 20


class Logits(torch.nn.Module):
    """A model as a function of ids and a mask to logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def write_onnx(model, tokenizer, output: Path) -> None:
    """Writes `model.onnx` and the tokenizer to the folder `output`.

    The program has `input_ids` and `attention_mask`, int64 `(batch, sequence)` of any size, and gives `logits`, float32
    `(batch, sequence, vocabulary)`: a masked model's at the masks themselves. There is no cache.

    Raises:
        InputError: the packages onnx and onnxscript are not there.
    """
    model.eval().float()
    ids = torch.full((2, 9), model.config.bos_token_id or 0)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("sequence", max=model.config.max_position_embeddings)
    shapes = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}
    with atomic_write(output) as folder:
        folder.mkdir()
        try:
            torch.onnx.export(
                Logits(model),
                (ids, torch.ones_like(ids)),
                folder / "model.onnx",
                input_names=list(shapes),
                output_names=["logits"],
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except ImportError as error:
            raise InputError("writing ONNX needs packages; install them with pip install onnx onnxscript") from error
        model.config.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
