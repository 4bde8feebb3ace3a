"""Exports a FlexQwen checkpoint as a plain Qwen3 one, which stock transformers run with no remote code.

    python -m flexqwen export runs/quickstart/hybrid-shift-256/best exported
    python -m flexqwen export runs/quickstart/hybrid-shift-256/best exported --mode bidirectional

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

ADDED = ("auto_map", "architectures", "is_causal", "mask_token_id", "masked_prediction", "model_type", "use_cache")
# The first is read by transformers, sentence-transformers, vLLM and llama.cpp, the second by text-embeddings-inference.
BIDIRECTIONAL = {"is_causal": False, "use_bidirectional_attention": True}
MODES = {"causal": (Qwen3ForCausalLM, {}), "bidirectional": (Qwen3Model, BIDIRECTIONAL)}


def export(checkpoint: str | Path, output: str | Path, mode: str = "causal") -> None:
    """Writes `checkpoint`, and its tokenizer if it has one, to `output` with `model_type` "qwen3" and no code.

    Args:
        mode: "causal" or "bidirectional".

    Raises:
        InputError: `checkpoint` is no whole FlexQwen checkpoint, or `output` exists.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    if not (checkpoint / "config.json").is_file():
        raise InputError(f"no checkpoint in {checkpoint}: config.json is missing")
    if output.exists():
        raise InputError(f"{output} exists; name a folder that does not")
    config = loading.load(FlexQwenConfig, checkpoint)
    if config.get_config_dict(checkpoint)[0].get("model_type") != FlexQwenConfig.model_type:
        what = f"{checkpoint} is not a FlexQwen checkpoint"
        raise InputError(f"{what}: its model_type is not {FlexQwenConfig.model_type}")
    cls, changes = MODES[mode]
    plain = Qwen3Config(**{name: value for name, value in config.to_dict().items() if name not in ADDED}, **changes)
    model = loading.load_model(cls, checkpoint, new_head=mode != "causal", config=plain, dtype="auto")
    with atomic_write(output) as folder:
        model.save_pretrained(folder)
        if (checkpoint / "tokenizer.json").is_file():
            loading.load(AutoTokenizer, checkpoint, config=plain).save_pretrained(folder)


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m flexqwen export", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder of a FlexQwen checkpoint")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--mode", choices=MODES, default="causal", help="which tokens those of the export attend to")
    args = parser.parse_args(argv)
    logging.disable_progress_bar()
    export(args.checkpoint, args.output, args.mode)
    print(f"exported: {args.output} (model_type qwen3, {args.mode}, no remote code)")
