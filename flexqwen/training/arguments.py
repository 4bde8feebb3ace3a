"""The settings of a training run: dataclasses, read from a YAML file and the command line."""

import dataclasses
import json
import os
import resource
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from flexqwen.cli import InputError, normalize_option, suggest_name, suggest_path
from flexqwen.parallel import check_shared_memory
from flexqwen.remote import check_place, reason
from flexqwen.training.objectives import ObjectiveArguments
from flexqwen.training.schedule import parse_phases


@dataclass
class ModelArguments:
    """The model's shape, by the names of `Qwen3Config`; or a checkpoint to go on from, which then decides it."""

    model_name_or_path: str | None = HfArg(
        default=None, help="a FlexQwen or Qwen3 checkpoint to start from, instead of a new model"
    )
    hidden_size: int = 384
    intermediate_size: int = 1280
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    num_key_value_heads: int = 6
    head_dim: int = 64
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    rope_theta: float = 10_000.0
    attn_implementation: str = HfArg(default="sdpa", help="eager, sdpa, flex_attention, ...")


@dataclass
class DataArguments:
    """The text: a folder made by carolina_originality.py, one of its configs, a tokenizer."""

    dataset: str = HfArg(default="carolina_originality", help="its folder, or its name on the Hub")
    dataset_config: str = HfArg(default="gold", help="the config whose train split is trained on")
    tokenizer: str = HfArg(default="runs/tokenizer", help="folder made by python -m flexqwen tokenizer")
    token_stores: str = HfArg(default="runs/tokens", help="folder where tokenized, packed rows are kept")
    token_store: str | None = HfArg(
        default=None,
        help="a folder in token_stores to train from instead of a dataset; the rows of phases lie beside it",
    )
    unique_tokens: int | None = HfArg(
        default=None,
        help="train on documents of at most so many tokens, drawn by seed; a smaller sample is a part of a larger one",
    )
    sequence_length: int = HfArg(default=512, help="tokens of a row")
    phases: list[str] | None = HfArg(
        default=None,
        help="shorter rows and smaller batches at first; a mapping each: until (share of the steps), "
        "sequence_length, batch_fraction (share of the last phase's tokens in a step)",
    )
    eval_documents: int = HfArg(
        default=200, help="documents of heldout/validation on which evaluation during training is made"
    )


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """The Trainer's own options. The run's folder is `<output_dir>/<strategy>-<sequence_length>/`."""

    # The order of this union is the Trainer's own: HfArgumentParser cannot read another.
    report_to: None | str | list[str] = HfArg(default="tensorboard", help="where logs go")  # noqa: RUF036
    muon: bool = HfArg(default=False, help="train the layers' matrices with Muon, and the rest with AdamW")
    ema_decay: float = HfArg(
        default=0.0,
        help="evaluate and save a moving average of the weights, of which each step keeps this share; 0: none",
    )
    resume_changed: bool = HfArg(
        default=False, help="resume from the last checkpoint of a run that was made with other settings"
    )
    overwrite: bool = HfArg(
        default=False, help="replace a finished or interrupted run that was made with other settings"
    )


GROUPS = (ModelArguments, DataArguments, ObjectiveArguments, TrainingArguments)
LONGEST = 2**18  # characters of a config
MOST_POSITIONS = 2**20  # of a row; each row in work takes its own memory
LARGEST = 2**48  # of any whole number: far above any that is meant, and far below what overflows
DEFAULTS = {option.name: option.default for group in GROUPS for option in dataclasses.fields(group)}


class _Parser(HfArgumentParser):
    def error(self, message: str):
        raise InputError(message)


@dataclass
class Arguments:
    """All settings of a run."""

    model: ModelArguments
    data: DataArguments
    objective: ObjectiveArguments
    training: TrainingArguments
    given: list[str]  # names of the settings that the config file or the command line gave


def parse(argv: list[str]) -> Arguments:
    """Reads `<config.yaml> [--name value ...]`; what stands on the command line wins.

    The YAML file is a flat mapping of the same names, read by the same parser.
    """
    usage = "train.py <config.yaml> [--name value ...]"
    if not argv:
        raise InputError(f"no config is given; usage: {usage}, see configs/")
    what = "Trains a FlexQwen. The config is a YAML file of the options below."
    parser = _Parser(GROUPS, prog="train.py", usage=usage, description=what, allow_abbrev=False)
    given, options = (None, argv) if argv[0].startswith("-") else (argv[0], argv[1:])
    options = [normalize_option(word) for word in options]
    known = {action.dest for action in parser._actions} - {"help"}
    from_file = _options_from_yaml(given, known) if given else []
    try:
        parser.parse_known_args(from_file)
    except InputError as error:
        raise InputError(f"config {given}: {error}") from None
    words = [*from_file, *options]
    if unknown := parser.parse_known_args(words)[1]:
        name = unknown[0].partition("=")[0]  # what comes after may be a token
        raise InputError(f"unknown option {name}{suggest_name(name.lstrip('-'), known)} (see train.py --help)")
    try:
        groups = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    except ValueError as error:  # the Trainer's own checks
        no_gpu = "bf16 needs a CUDA GPU; set use_cpu to true to train on the CPU, or bf16 to false"
        raise InputError(no_gpu if "support bf16" in str(error) else reason(error)) from None
    actions = (parser._option_string_actions.get(word.partition("=")[0]) for word in words)
    found = Arguments(*groups, given=list(dict.fromkeys(action.dest for action in actions if action)))
    for name, value in as_dict(found).items():
        if isinstance(value, int) and abs(value) > LARGEST:
            raise InputError(f"{name} is {value}; no whole number may be above {LARGEST:,}")
    return found


class _OneKeyLoader(yaml.SafeLoader):
    """SafeLoader, but a key that stands twice in a mapping is an error instead of the last one winning, and so is an
    alias: a few of them make a value without end.
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "it has an alias (*); write the value out", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated.pop()!r} stands there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict:
    """Reads a YAML file that is a mapping."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise InputError(f"config {path} has more than {LONGEST:,} characters, which no config has")
        content = yaml.load(text, _OneKeyLoader)
    except OSError as error:
        raise InputError(f"config {path} cannot be read: {error.strerror}{suggest_path(path)}") from None
    except RecursionError:
        raise InputError(f"config {path} has values within values beyond all measure") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"config {path} is not valid YAML: {reason(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"config {path} must be a mapping of names to values")
    return content


def _options_from_yaml(path: str, known: set[str]) -> list[str]:
    options = []
    for name, value in read_yaml(path).items():
        if name not in known:
            raise InputError(f"config {path}: unknown key {name!r}{suggest_name(str(name), known)}")
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        options += [f"--{name}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in values)]
    return options


def as_dict(arguments: Arguments) -> dict:
    """All settings as one flat JSON-serialisable mapping, as they would stand in a config file."""
    model, data, objective = map(dataclasses.asdict, (arguments.model, arguments.data, arguments.objective))
    training = arguments.training.to_dict() | {"report_to": arguments.training.report_to or "none"}
    return {**model, **data, **objective, **training}


def check(arguments: Arguments) -> None:
    """Refuses what can be seen to be wrong before any work."""
    data, training, given = arguments.data, arguments.training, arguments.given
    for name, value, least in (
        ("per_device_train_batch_size", training.train_batch_size, 1),
        ("gradient_accumulation_steps", training.gradient_accumulation_steps, 1),
        ("eval_documents", data.eval_documents, 1),
        ("sequence_length", data.sequence_length, 2),
        ("learning_rate", training.learning_rate, 0),
        ("weight_decay", training.weight_decay, 0),
    ):
        if not value >= least:
            raise InputError(f"{name} is {value}; it must be at least {least}")
    if arguments.model.attn_implementation == "varlen" and training.device.type == "cpu" and not training.use_cpu:
        what = f"attn_implementation varlen is for a GPU, and torch {torch.__version__} finds none"
        raise InputError(f"{what}; look at nvidia-smi and the driver, or pass --use_cpu true to train on the CPU")
    if data.sequence_length > MOST_POSITIONS:
        raise InputError(f"sequence_length is {data.sequence_length}; it must be at most {MOST_POSITIONS:,}")
    if arguments.model.model_name_or_path:
        check_place(arguments.model.model_name_or_path)
    if training.muon and "optim" in given:
        raise InputError(f"muon and optim: {training.optim.value} are both set; leave one of them out")
    if not 0 <= training.ema_decay < 1:
        raise InputError(f"ema_decay is {training.ema_decay}; it must be from 0 to below 1")
    if training.ema_decay and (training.fsdp or training.deepspeed):
        raise InputError("ema_decay is set, and fsdp and deepspeed would not resume the average; leave it out")
    if training.fp16:
        raise InputError("fp16 is not supported: the loss makes its gradients before they could be scaled; use bf16")
    if training.max_steps == 0:
        raise InputError("max_steps is 0; it must be at least 1, or absent, when num_train_epochs counts")
    if training.max_steps < 0:
        if not training.num_train_epochs > 0:
            raise InputError(f"num_train_epochs is {training.num_train_epochs}; it must be above 0")
        if data.phases:
            raise InputError("phases are shares of max_steps; give max_steps")
    for name in ("eval_strategy", "save_strategy"):
        if getattr(training, name) == "epoch":
            raise InputError(f"{name} is epoch; a run is one pass over its steps, so use steps")
    if training.auto_find_batch_size:
        remedy = "leave it out, lower per_device_train_batch_size and raise gradient_accumulation_steps by as much"
        raise InputError(f"auto_find_batch_size is set, and it would begin again over saved checkpoints; {remedy}")
    if training.label_smoothing_factor:
        raise InputError("label_smoothing_factor is set; the model makes its own loss, without it, so leave it out")
    if training.save_only_model:
        raise InputError("save_only_model is set, and no run could resume from such checkpoints; leave it out")
    parse_phases(data.phases, data.sequence_length)
    if training.dataloader_num_workers:
        without = "set dataloader_num_workers to 0"
        check_shared_memory(without)
        limit, least = resource.getrlimit(resource.RLIMIT_NOFILE)[0], 64 + 32 * training.dataloader_num_workers
        # Workers hand over each tensor as an open file, two batches ahead of a dozen each, beside their pipes. One
        # too many, and they wait for ever.
        if 0 <= limit < least:
            raise InputError(f"{limit} files may be open, and {least} are needed; raise that (ulimit -n), or {without}")
    if training.n_gpu > 1:
        raise InputError("several GPUs in one process are not supported; start one process for each with torchrun")
    if training.fsdp and torch.__version__ < (2, 13):  # in 2.11 a head that runs twice breaks it
        raise InputError(f"--fsdp needs torch 2.13, and this is {torch.__version__}; leave it out, or install that")
    if training.push_to_hub and not training.hub_model_id:
        raise InputError("push_to_hub needs --hub_model_id <user or organisation>/<name>")
    if training.push_to_hub and training.hub_strategy != "every_save":
        raise InputError(f"hub_strategy is {training.hub_strategy.value}; only every_save is supported")


def fix_training_arguments(training: TrainingArguments, folder: Path) -> None:
    """Sets those of the Trainer's options that its run here decides, whatever was given."""
    training.output_dir = str(folder)
    training.push_to_hub, training.hub_token = False, None  # the publisher does it, in our layout
    training.remove_unused_columns = False
    training.dataloader_pin_memory &= torch.cuda.is_available()
    training.accelerator_config.non_blocking = training.dataloader_pin_memory
    training.accelerator_config.even_batches = False  # StepBatches are even, and of a size that changes by phases
    training.ddp_find_unused_parameters = False
    training.logging_nan_inf_filter = False  # the trainer looks itself, and less often
    training.metric_for_best_model, training.greater_is_better = "loss", False
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "logs")
