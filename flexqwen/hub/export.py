"""Exports a FlexQwen checkpoint for programs that know nothing of it: as a plain Qwen3, as GGUF, or as ONNX.

    python -m flexqwen export runs/quickstart/hybrid-shift-256/best exported
    python -m flexqwen export runs/quickstart/hybrid-shift-256/best encoder --mode bidirectional
    python -m flexqwen export runs/quickstart/hybrid-shift-256/best model.gguf --format gguf --outtype q8_0
    python -m flexqwen export runs/quickstart/hybrid-shift-256/best masked --format onnx --mode bidirectional

The weights stay as they are: FlexQwen is Qwen3 with another attention mask. A causal export is a `Qwen3ForCausalLM`; a
bidirectional one is the encoder, a `Qwen3Model` without a head, which its config makes bidirectional. The way back
needs no command, since the classes of FlexQwen load a Qwen3 folder.
"""

from pathlib import Path

from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.utils import logging

from configuration_flexqwen import FlexQwenConfig
from flexqwen import loading
from flexqwen.cli import ArgumentParser, InputError, command
from flexqwen.files import atomic_write
from flexqwen.hub.export_gguf import OUTTYPES, write_gguf
from flexqwen.hub.export_onnx import write_onnx
from modeling_flexqwen import FlexQwenForCausalLM, FlexQwenForMaskedLM

ADDED = ("auto_map", "architectures", "is_causal", "mask_token_id", "masked_prediction", "model_type", "use_cache")
# The first is read by transformers, sentence-transformers, vLLM and llama.cpp, the second by text-embeddings-inference.
BIDIRECTIONAL = {"is_causal": False, "use_bidirectional_attention": True}
MODES, FORMATS = ("causal", "bidirectional"), ("safetensors", "gguf", "onnx")


def export(
    checkpoint: str | Path, output: str | Path, mode: str = "causal", format: str = "safetensors", outtype: str = "f16"
) -> None:
    """Writes `checkpoint`, and its tokenizer if it has one, to `output`, with no code.

    Args:
        mode: "causal" or "bidirectional".
        format: "safetensors", a folder with `model_type` "qwen3"; "gguf", a file (see export_gguf.py); "onnx", a folder
            (see export_onnx.py).
        outtype: of the matrices of GGUF: "f32", "f16" or "q8_0".

    Raises:
        InputError: `checkpoint` is no whole FlexQwen checkpoint, or `output` exists, or the format cannot hold it.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"no checkpoint in {checkpoint}: config.json is missing")
    if output.exists():
        raise InputError(f"{output} exists; name one that does not")
    config = loading.load(FlexQwenConfig, checkpoint)
    if config.get_config_dict(checkpoint)[0].get("model_type") != FlexQwenConfig.model_type:
        what = f"{checkpoint} is not a FlexQwen checkpoint"
        raise InputError(f"{what}: its model_type is not {FlexQwenConfig.model_type}")
    is_causal = mode == "causal"
    plain = {name: value for name, value in config.to_dict().items() if name not in ADDED}
    plain = Qwen3Config(**plain, **({} if is_causal else BIDIRECTIONAL))
    tokenizer = None
    if (checkpoint / "tokenizer.json").is_file():
        tokenizer = loading.load(AutoTokenizer, checkpoint, config=plain)
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
