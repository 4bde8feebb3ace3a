"""Loads checkpoints: no code of theirs is run unasked, and every weight is theirs and a number.

For `model_type: flexqwen` the Auto classes give this repository's own, not the code beside a checkpoint.
"""

import functools
import sys
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig, Qwen3Config

import modeling_flexqwen
from configuration_flexqwen import AUTO_MAP, FlexQwenConfig
from flexqwen.cli import InputError
from flexqwen.files import file_digest
from flexqwen.remote import reason

AutoConfig.register(FlexQwenConfig.model_type, FlexQwenConfig, exist_ok=True)
for _auto_class, _place in AUTO_MAP.items():
    if _auto_class != "AutoConfig":
        _own = getattr(modeling_flexqwen, _place.rpartition(".")[2])
        getattr(transformers, _auto_class).register(FlexQwenConfig, _own, exist_ok=True)


def load(cls: type, path: str | Path, trust_remote_code: bool = False, **options):
    """`cls.from_pretrained`, for a config or a tokenizer, in a folder or on the Hub; says so where foreign code ran.

    Args:
        cls: a class of transformers or of this repository, or an Auto class.
        trust_remote_code: run the code that a checkpoint brings along, if it is no FlexQwen.

    Raises `InputError`, whatever goes wrong; also where code would have to be run.
    """
    before = set(sys.modules)
    try:
        if trust_remote_code:
            trust_remote_code = PreTrainedConfig.get_config_dict(path)[0].get("model_type") != FlexQwenConfig.model_type
        return cls.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # damaged files and foreign code raise anything
        if not trust_remote_code and "trust_remote_code" in str(error):
            remedy = "read it first; only a command with the option --trust_remote_code can run it"
            raise InputError(f"{path} needs code of its own, which was not run; {remedy}") from error
        raise InputError(f"{path} does not load as {cls.__name__}: {reason(error)}") from error
    finally:
        if any(name.startswith("transformers_modules.") for name in set(sys.modules) - before):
            _say_once(f"note: code of {path} is run (--trust_remote_code)")


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def load_model(cls: type, path: str | Path, new_head: bool = False, trust_remote_code: bool = False, **options):
    """`load` for a model, in float32 unless `options` have a dtype.

    Raises `InputError` as `load`; also for weights that are missing (other than tied ones), of another shape, too many,
    or not finite: it names the file and the first of them. With `new_head` the class's head may be missing in the
    checkpoint, and another head be there.
    """
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is damaged: {error}") from error
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what its report would say is said here
    options = {"dtype": torch.float32, **options, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, info = load(cls, path, trust_remote_code, **options)
    finally:
        transformers.logging.set_verbosity(verbosity)
    missing, unexpected = info["missing_keys"], info["unexpected_keys"]
    if new_head:
        missing = [name for name in missing if not _is_of_a_head(name, model)]
    if new_head or not isinstance(model.config, Qwen3Config):  # a BERT was pre-trained with a head more
        unexpected = [name for name in unexpected if not _is_of_a_head(name, model)]
    for what, names in {
        "lacks weights of": missing,
        "has weights in other shapes than those of": [name for name, *_ in info["mismatched_keys"]],
        "has weights that do not exist in": unexpected,
        "has NaN or infinity in weights of": [n for n, w in model.named_parameters() if not w.isfinite().all()],
    }.items():
        if names:
            file = Path(path) / "model.safetensors"
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{file if file.is_file() else path} {what} {type(model).__name__}: {min(names)}{more}")
    return model


def _is_of_a_head(name: str, model) -> bool:
    """Whether a weight is not the base model's; one that was saved without its head has names without the prefix."""
    in_base = name.startswith(f"{model.base_model_prefix}.") or hasattr(model.base_model, name.partition(".")[0])
    return not in_base or "pooler." in name


def digest_checkpoint(folder: str | Path) -> dict[str, str]:
    """Digests of the files in a checkpoint's folder that name its weights; none of what is no folder."""
    patterns = ("*.safetensors", "pytorch_model*.bin", "tokenizer.json")
    files = [file for pattern in patterns for file in Path(folder).glob(pattern)]
    try:
        return {file.name: file_digest(file) for file in sorted(files)}
    except FileNotFoundError:
        raise InputError(f"{folder} changed while it was read; run again") from None


def check_unchanged(folder: str | Path, digests: dict[str, str]) -> None:
    """Raises `InputError` where a training replaced the checkpoint: figures and digests would be of two models."""
    if digest_checkpoint(folder) != digests:
        raise InputError(f"{folder} changed while it was evaluated; run again, or evaluate a copy")
