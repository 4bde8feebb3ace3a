"""Exports a FlexQwen checkpoint for programs that know nothing of it: as a plain Qwen3, as GGUF, or as ONNX.

A causal export is a `Qwen3ForCausalLM`; a bidirectional one is the encoder, a `Qwen3Model` without a head, which its
config makes bidirectional. The way back needs no command, since the classes of FlexQwen load a Qwen3 folder.
"""

from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.utils import logging

from configuration_flexqwen import FlexQwenConfig
from flexqwen import loading
from flexqwen.cli import ArgumentParser, InputError, command, suggest_path
from flexqwen.files import atomic_write, read_json, write_json
from flexqwen.hub.export_gguf import OUTTYPES, write_gguf
from flexqwen.training.checkpoints import write_embedding_modules
from modeling_flexqwen import FlexQwenForCausalLM, FlexQwenForMaskedLM

ADDED = ("auto_map", "architectures", "is_causal", "mask_token_id", "masked_prediction", "model_type", "use_cache")
# The first is read by transformers, sentence-transformers, vLLM and llama.cpp, the second by text-embeddings-inference.
BIDIRECTIONAL = {"is_causal": False, "use_bidirectional_attention": True}
OPSET = 20  # of ONNX
MODES, FORMATS = ("causal", "bidirectional"), ("safetensors", "gguf", "onnx")


def export(
    checkpoint: str | Path, output: str | Path, mode: str = "causal", format: str = "safetensors", outtype: str = "f16"
) -> None:
    """Writes `checkpoint`, and its tokenizer if it has one, to `output`, with no code.

    `mode` is one of MODES; `format`, of FORMATS: a folder, or for GGUF a file; `outtype`, of OUTTYPES: of its matrices.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"no checkpoint in {checkpoint}: config.json is missing{suggest_path(checkpoint)}")
    if output.exists():
        raise InputError(f"{output} exists; name one that does not")
    config = loading.load(FlexQwenConfig, checkpoint)
    if config.get_config_dict(checkpoint)[0].get("model_type") != FlexQwenConfig.model_type:
        raise InputError(
            f"{checkpoint} is not a FlexQwen checkpoint: its model_type is not {FlexQwenConfig.model_type}"
        )
    is_causal = mode == "causal"
    plain = {name: value for name, value in config.to_dict().items() if name not in ADDED}
    plain = Qwen3Config(**plain, **({} if is_causal else BIDIRECTIONAL))
    has_tokenizer = (checkpoint / "tokenizer.json").is_file()
    tokenizer = loading.load(AutoTokenizer, checkpoint, config=plain) if has_tokenizer else None
    if format == "gguf":
        if tokenizer is None:
            raise InputError(f"{checkpoint} has no tokenizer, which GGUF holds too")
        model = loading.load_model(Qwen3ForCausalLM, checkpoint, config=plain, dtype="auto")
        write_gguf(model, tokenizer, output, outtype, is_causal)
    elif format == "onnx":
        cls = FlexQwenForCausalLM if is_causal else FlexQwenForMaskedLM
        write_onnx(loading.load_model(cls, checkpoint), tokenizer, output)
    else:
        cls = Qwen3ForCausalLM if is_causal else Qwen3Model
        model = loading.load_model(cls, checkpoint, new_head=not is_causal, config=plain, dtype="auto")
        with atomic_write(output) as folder:
            model.save_pretrained(folder)
            if not is_causal:
                write_embedding_modules(folder, config.hidden_size)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            add_former_names(folder)


def add_former_names(folder: Path) -> None:
    """Adds what transformers 4 reads, and takes for a default where it is absent: a tokenizer's class, rope's base."""
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "rope_theta": config["rope_parameters"]["rope_theta"]})
    if (settings := read_json(folder / "tokenizer_config.json")) is not None:
        settings = {name: value for name, value in settings.items() if name not in ("is_local", "local_files_only")}
        write_json(folder / "tokenizer_config.json", {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})


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
    """
    model.eval().float()
    ids = torch.full((2, 9), model.config.bos_token_id or 0)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("sequence", max=model.config.max_position_embeddings)
    shapes = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}
    options = {"input_names": list(shapes), "output_names": ["logits"], "dynamic_shapes": shapes}
    options |= {"opset_version": OPSET, "dynamo": True, "external_data": False, "verbose": False}
    with atomic_write(output) as folder:
        folder.mkdir()
        try:
            torch.onnx.export(Logits(model).eval(), (ids, torch.ones_like(ids)), folder / "model.onnx", **options)
        except ImportError as error:
            raise InputError("writing ONNX needs packages; install them with pip install onnx onnxscript") from error
        model.config.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m flexqwen export", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder of a FlexQwen checkpoint")
    parser.add_argument("output", help="folder to write; with --format gguf, a file")
    parser.add_argument("--mode", choices=MODES, default="causal", help="which tokens those of the export attend to")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="safetensors: a plain Qwen3")
    parser.add_argument("--outtype", choices=OUTTYPES, help="of the matrices of GGUF; f16 by default")
    args = parser.parse_args(argv)
    if args.outtype and args.format != "gguf":
        raise InputError(f"--outtype is of GGUF; leave it out with --format {args.format}")
    logging.disable_progress_bar()
    export(args.checkpoint, args.output, args.mode, args.format, args.outtype or "f16")
    print(f"exported: {args.output} ({args.format}, {args.mode}, no remote code)")
