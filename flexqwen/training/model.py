"""Makes the model of a run: new, or from a checkpoint of FlexQwen or Qwen3."""

import dataclasses
import os
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils import cached_file

import configuration_flexqwen
import modeling_flexqwen
from configuration_flexqwen import AUTO_MAP, FlexQwenConfig
from flexqwen import loading
from flexqwen.cli import InputError
from flexqwen.files import atomic_write
from flexqwen.remote import explain_failure
from flexqwen.training.arguments import ModelArguments
from flexqwen.training.compat import refusals_named
from flexqwen.training.objectives import ObjectiveArguments
from modeling_flexqwen import FlexQwenForCausalLM

SPECIAL = ("pad", "bos", "eos", "mask")


def load_tokenizer(folder: str, sequence_length: int):
    """The tokenizer of a run."""
    tokenizer = loading.load(AutoTokenizer, folder, model_max_length=sequence_length)
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
    if missing := [name for name, number in ids.items() if number is None]:
        raise InputError(f"the tokenizer in {folder} has no {missing[0]} token; training needs it")
    if len(set(ids.values())) < len(ids):
        raise InputError(f"the tokenizer in {folder} has one id for several special tokens: {ids}")
    return tokenizer


def check_vocabulary(checkpoint: str, tokenizer_folder: str) -> None:
    """Refuses a vocabulary other than that of the checkpoint's own tokenizer, where it has one."""
    try:
        own = cached_file(checkpoint, "tokenizer.json", **loading.locate(checkpoint))
    except OSError:  # it has none of this kind: nothing to compare with
        return
    vocabularies = []
    for path in (own, f"{tokenizer_folder}/tokenizer.json"):
        with explain_failure(f"{path} is damaged", "bring it back"):
            vocabularies.append(Tokenizer.from_file(str(path)).get_vocab())
    if vocabularies[0] != vocabularies[1]:
        remedy = f"pass --tokenizer {checkpoint}, or what python -m flexqwen tokenizer --adapt {checkpoint} makes of it"
        raise InputError(f"{tokenizer_folder} does not have the vocabulary of {checkpoint}; {remedy}")


def build_model(model: ModelArguments, objective: ObjectiveArguments, tokenizer):
    """A `FlexQwenForCausalLM` for training, for rows of the tokenizer's length; new weights depend on torch's seed."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
    ids["masked_prediction"] = objective.masked_prediction
    if checkpoint := model.model_name_or_path:
        check_vocabulary(checkpoint, tokenizer.name_or_path)
        config = loading.load(FlexQwenConfig, checkpoint)
        if config.vocab_size < len(tokenizer):
            what = f"{checkpoint} has a vocabulary of {config.vocab_size}, the tokenizer one of {len(tokenizer)}"
            raise InputError(f"{what}; use the checkpoint's own tokenizer")
        if config.max_position_embeddings < (length := tokenizer.model_max_length):
            what = f"{checkpoint} has {config.max_position_embeddings} positions and sequence_length is {length}"
            raise InputError(f"{what}; lower sequence_length")
        # In float32: AdamW's small steps would round away in bfloat16. With our code, which may be published.
        ids |= {"attn_implementation": model.attn_implementation, "dtype": torch.float32, "auto_map": dict(AUTO_MAP)}
        return loading.load_model(FlexQwenForCausalLM, checkpoint, **ids)
    config, weights = make_config(model, tokenizer.model_max_length, vocab_size=len(tokenizer), **ids)
    needed = weights * (4 if torch.cuda.is_available() else 8)  # on a CPU each weight's gradient is kept, too
    if needed > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        what = f"training {weights:,} weights takes {needed >> 30} GiB or more, and this machine has {memory >> 30}"
        raise InputError(f"the model cannot be made: {what}")
    with refusals_named("the model"):
        return FlexQwenForCausalLM(config)


def make_config(model: ModelArguments, sequence_length: int, **more) -> tuple[FlexQwenConfig, int]:
    """The config of a new model, from which one can be made, and its number of weights."""
    if model.num_key_value_heads < 1 or model.num_attention_heads % model.num_key_value_heads:
        heads, groups = model.num_attention_heads, model.num_key_value_heads
        raise InputError(f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({groups})")
    shape = dataclasses.asdict(model) | {"max_position_embeddings": sequence_length} | more
    shape["rope_parameters"] = {"rope_type": "default", "rope_theta": shape.pop("rope_theta")}
    del shape["model_name_or_path"]
    with refusals_named("the model"):
        if model.num_hidden_layers > loading.MOST_LAYERS:
            raise ValueError(f"num_hidden_layers is {model.num_hidden_layers:,}")
        config = FlexQwenConfig(**shape)
        with torch.device("meta"):  # which takes no memory
            return config, FlexQwenForCausalLM(config).num_parameters()


def save_code(folder: Path) -> None:
    """Puts the remote code at the root of a folder of runs, where `from_pretrained` looks for that of a subfolder."""
    folder.mkdir(parents=True, exist_ok=True)
    for module in (configuration_flexqwen, modeling_flexqwen):
        with atomic_write(folder / Path(module.__file__).name) as partial:
            shutil.copyfile(module.__file__, partial)
