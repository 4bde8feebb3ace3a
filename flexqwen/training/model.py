"""Makes the model of a run: new, or from a checkpoint of FlexQwen or Qwen3."""

import shutil
from pathlib import Path

import torch

import configuration_flexqwen
import modeling_flexqwen
from configuration_flexqwen import AUTO_MAP, FlexQwenConfig
from flexqwen import loading
from flexqwen.cli import InputError
from flexqwen.files import atomic_write
from flexqwen.training.arguments import ModelArguments
from flexqwen.training.objectives import ObjectiveArguments
from modeling_flexqwen import FlexQwenForCausalLM


def build_model(model: ModelArguments, objective: ObjectiveArguments, tokenizer, sequence_length: int):
    """A `FlexQwenForCausalLM` for training; new weights depend on torch's seed.

    Raises:
        InputError: a shape that cannot be, or a checkpoint that does not load or has fewer tokens than the tokenizer.
    """
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")}
    ids["masked_prediction"] = objective.masked_prediction
    if model.model_name_or_path:
        config = loading.load(FlexQwenConfig, model.model_name_or_path)
        if config.vocab_size < len(tokenizer):
            raise InputError(
                f"{model.model_name_or_path} has a vocabulary of {config.vocab_size}, the tokenizer one of "
                f"{len(tokenizer)}; use the checkpoint's own tokenizer"
            )
        return loading.load_model(
            FlexQwenForCausalLM,
            model.model_name_or_path,
            attn_implementation=model.attn_implementation,
            dtype=torch.float32,  # not the checkpoint's: AdamW's small steps would round away in bfloat16
            auto_map=dict(AUTO_MAP),  # nor the code that it names: what is trained here may be published
            **ids,
        )
    if model.num_attention_heads % model.num_key_value_heads:
        raise InputError(
            f"num_attention_heads ({model.num_attention_heads}) must be a multiple of num_key_value_heads "
            f"({model.num_key_value_heads})"
        )
    config = FlexQwenConfig(
        vocab_size=len(tokenizer),
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        head_dim=model.head_dim,
        initializer_range=model.initializer_range,
        tie_word_embeddings=model.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        max_position_embeddings=sequence_length,
        attn_implementation=model.attn_implementation,
        **ids,
    )
    return FlexQwenForCausalLM(config)


def save_code(folder: Path) -> None:
    """Puts the remote code at the root of a folder of runs.

    `from_pretrained(folder, subfolder="hybrid-shift-256/best", trust_remote_code=True)` looks for the code there, not
    in the subfolder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for module in (configuration_flexqwen, modeling_flexqwen):
        with atomic_write(folder / Path(module.__file__).name) as aside:
            shutil.copyfile(module.__file__, aside)
