"""Loads checkpoints: no code of theirs is run unasked, and every weight is theirs and a number.

For `model_type: flexqwen` the Auto classes give this repository's own, not the code beside a checkpoint.
"""

import functools
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NoReturn

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, Qwen3Config
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

import modeling_flexqwen
from configuration_flexqwen import AUTO_MAP, FlexQwenConfig
from flexqwen.cli import InputError, is_shortage, suggest_path
from flexqwen.files import file_digest
from flexqwen.remote import check_place, explain_failure, is_reachable, reason

MOST_LAYERS = 1000  # a config's lists, which have an entry for each, are made before anything else is looked at
SLACK = 2**27  # weights that a model may have beyond twice those in its files: a new head's

AutoConfig.register(FlexQwenConfig.model_type, FlexQwenConfig, exist_ok=True)
for _auto_class, _place in AUTO_MAP.items():
    if _auto_class != "AutoConfig":
        _own = getattr(modeling_flexqwen, _place.rpartition(".")[2])
        getattr(transformers, _auto_class).register(FlexQwenConfig, _own, exist_ok=True)


def load(cls: type, path: str | Path, trust_remote_code: bool = False, **options):
    """`cls.from_pretrained`, for a config or a tokenizer, in a folder or on the Hub; says so where foreign code ran.

    With `trust_remote_code` a checkpoint's own code is run, if it is no FlexQwen. Any error is an `InputError`.
    """
    check_place(path)
    options |= locate(path)
    try:
        given, is_alone = {}, Path(path).is_dir() and not (Path(path) / "config.json").is_file()
        if is_alone and cls is not AutoTokenizer:
            raise InputError(f"no checkpoint in {path}: config.json is missing")  # a default would stand in for it
        with suppress(OSError) if cls is AutoTokenizer else nullcontext():  # which may be all that the Hub has there
            given = {} if is_alone else PreTrainedConfig.get_config_dict(path, **locate(path))[0]
        trust_remote_code &= given.get("model_type") != FlexQwenConfig.model_type
        if not 0 < given.get("num_hidden_layers", 1) <= MOST_LAYERS:
            raise InputError(
                f"{path}: num_hidden_layers is {given['num_hidden_layers']}; at most {MOST_LAYERS:,} are loaded"
            )
        with say_what_runs(path), nullcontext() if cls is AutoTokenizer else only_errors():
            return cls.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # damaged files and foreign code raise anything
        if isinstance(error, InputError) or is_shortage(error):
            raise
        if not trust_remote_code and "trust_remote_code" in str(error):
            remedy = "read it first; only a command with the option --trust_remote_code can run it"
            raise InputError(f"{path} needs code of its own, which was not run; {remedy}") from error
        if not os.path.exists(path):
            what = f"{path} is no folder here, and the Hub does not give it ({reason(error)})"
            raise InputError(f"{what}{suggest_path(path)}") from error
        raise InputError(f"{path} does not load as {cls.__name__}: {reason(error)}; bring the right files") from error


def locate(path: str | Path) -> dict[str, bool]:
    """Options of `from_pretrained`: of what is no folder, what was fetched before, if the Hub cannot be reached."""
    return {} if os.path.exists(path) or is_reachable() else {"local_files_only": True}


@contextmanager
def only_errors() -> Iterator[None]:
    """No warnings of transformers: of weights, its report is said here; and a FlexQwen may be made of a Qwen3."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


@contextmanager
def say_what_runs(path: str | Path) -> Iterator[None]:
    """Says, once a checkpoint, that its own code ran, if it did so within the block."""
    before = set(sys.modules)
    try:
        yield
    finally:
        if any(name.startswith("transformers_modules.") for name in set(sys.modules) - before):
            _say_once(f"note: code of {path} is run (--trust_remote_code)")


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def load_model(cls: type, path: str | Path, new_head: bool = False, trust_remote_code: bool = False, **options):
    """`load` for a model, in float32 unless `options` have a dtype.

    `InputError` too for weights that are missing, of another shape, too many, or not finite. With `new_head` the head
    may be missing in the checkpoint, and another be there.
    """
    check_shapes(cls, path, trust_remote_code, options.get("config"))
    options = {"dtype": torch.float32, **options, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = load(cls, path, trust_remote_code, **options)
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
            refuse(path, f"{what} {type(model).__name__}", names)
    return model


def check_tokenizer(tokenizer, config, path: str | Path) -> None:
    """Raises `InputError` where the tokenizer has no tokens, or ids that a model of this config does not know."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= largest < config.vocab_size or not tokenizer("a", add_special_tokens=False).input_ids:
        has = f"it has {f'ids up to {largest}' if largest >= 0 else 'no tokens'}, and the model a vocabulary of"
        raise InputError(f"the tokenizer of {path} does not fit: {has} {config.vocab_size}")


def check_shapes(cls: type, path: str | Path, trust_remote_code: bool = False, config=None) -> None:
    """Compares the model that a config describes with the headers of its weights, before any memory is taken."""
    shapes = {}
    for file in find_weights(path):
        try:
            with safe_open(file, framework="pt") as weights:
                shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is damaged: {error}; bring it anew") from error
    config = config or load(getattr(cls, "config_class", None) or AutoConfig, path, trust_remote_code)
    if not shapes or getattr(config, "quantization_config", None):  # whose weights are packed
        return
    with (
        explain_failure(f"{path}: config.json describes no {cls.__name__}", "bring the right one"),
        torch.device("meta"),
        say_what_runs(path),
    ):
        is_auto = not issubclass(cls, PreTrainedModel)
        model = cls.from_config(config, trust_remote_code=trust_remote_code) if is_auto else cls(config)
        described = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if wrong := [name for name, shape in described.items() if shapes.get(name, shape) != shape]:
        refuse(path, f"has weights in other shapes than those of {cls.__name__}", wrong)
    sizes = [sum(map(math.prod, part.values())) for part in (described, shapes)]
    if sizes[0] > 2 * sizes[1] + SLACK:
        what = "{:,} weights, and config.json describes a model of {:,}".format(*sizes[::-1])
        raise InputError(f"{path} has {what}; bring the files that belong together")


def find_weights(path: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint, in a folder or on the Hub, from where they are fetched."""
    if Path(path).is_dir():
        return sorted(Path(path).glob("*.safetensors"))
    with suppress(Exception):  # loading says what is wrong
        how = {"_raise_exceptions_for_missing_entries": False, **locate(path)}
        if single := cached_file(path, SAFE_WEIGHTS_NAME, **how):
            return [Path(single)]
        if index := cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **how):
            return sorted({Path(file) for file in get_checkpoint_shard_files(path, index, **locate(path))[0]})
    return []


def refuse(path: str | Path, what: str, names: list[str]) -> NoReturn:
    """Raises InputError: what is wrong with the weights, and the first of these names."""
    file = Path(path) / SAFE_WEIGHTS_NAME
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    raise InputError(f"{file if file.is_file() else path} {what}: {min(names)}{more}; bring the right files")


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
