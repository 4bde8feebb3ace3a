"""Trains a FlexQwen: config -> data -> transformers.Trainer -> checkpoints and logs.

    python train.py configs/quickstart.yaml [--learning_rate 1e-3 ...]

Options are the Trainer's own and those of flexqwen/arguments.py; `python train.py --help` lists them. Running the same
command again goes on where a run was interrupted, and says so when there is nothing left to do.
"""

import math
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from tokenizers import Tokenizer
from transformers import AutoTokenizer, set_seed
from transformers.utils import cached_file, logging

from flexqwen import loading
from flexqwen.cli import InputError, command
from flexqwen.data.packing import stored_digest, token_store
from flexqwen.data.texts import summary
from flexqwen.evaluation.heldout import HeldOut
from flexqwen.files import digest, file_digest, versions, write_json
from flexqwen.hub.publisher import Publisher
from flexqwen.hub.repository import Repository, fetched
from flexqwen.training import arguments as settings
from flexqwen.training import runs
from flexqwen.training.curves import draw_loss_curves
from flexqwen.training.model import build_model, save_code
from flexqwen.training.objectives import TrainingRows
from flexqwen.training.schedule import Phase, parse_phases, step_ranges
from flexqwen.training.trainer import FlexQwenTrainer


@command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = settings.parse(argv)
    model_args, data, objective, training = args.model, args.data, args.objective, args.training
    folder = runs.run_folder(args)
    with training.main_process_first(local=False):
        publisher = publisher_of(args, folder)
        files = ["manifest.json", f"data/{data.dataset_config}/*", "data/heldout/*"]
        dataset = fetched(data.dataset, "dataset", files, training.hub_token)
    check(args)
    phases = parse_phases(data.phases, data.sequence_length)
    tokenizer_digest = file_digest(Path(data.tokenizer) / "tokenizer.json")
    dataset_digest = stored_digest(
        dataset, data.dataset_config, tokenizer_digest, data.sequence_length, data.token_stores
    )
    made_by = versions("torch", "transformers", "accelerate", "tokenizers", "numpy")
    digests = {"dataset": dataset_digest, "tokenizer": tokenizer_digest}
    if model_args.model_name_or_path:
        weights = sorted(Path(model_args.model_name_or_path).glob("*.safetensors"))
        digests["model"] = digest([file_digest(file) for file in weights] or model_args.model_name_or_path)
    description = runs.describe(args, digests, made_by, ["train.py", *argv])
    description["data"] = summary(dataset, data.dataset_config)
    description["dataset_is_of_the_hub"] = dataset != data.dataset  # the name alone does not tell it from a folder
    description["hardware"] = runs.hardware(training.world_size)
    _lock = runs.lock(folder) if training.process_index == 0 else None
    with training.main_process_first(local=False):
        # First what lies here: where it is something else this raises, and nothing is fetched over it.
        state = runs.state_of(folder, description, training.overwrite, training.resume_changed)
        if publisher and publisher.take_up(description, state, training.overwrite, training.resume_changed):
            state = runs.state_of(folder, description, training.overwrite, training.resume_changed)
    if state == "finished":
        print(f"run: {folder} is already finished, with the same settings and data; reused")
        if publisher:
            with publisher.publishing():
                return
        return

    tokenizer = loading.load(AutoTokenizer, data.tokenizer, model_max_length=data.sequence_length)
    if missing := [name for name in ("bos", "eos", "pad", "mask") if getattr(tokenizer, f"{name}_token_id") is None]:
        raise InputError(f"the tokenizer in {data.tokenizer} has no {missing[0]} token; training needs it")
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    if len(set(special.values())) < len(special):
        raise InputError(f"the tokenizer in {data.tokenizer} has one id for several special tokens: {special}")
    set_seed(training.seed)
    try:
        model = build_model(model_args, objective, tokenizer, data.sequence_length)
    except (ValueError, OSError, ImportError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"the model cannot be made: {' '.join(str(error).split())}") from error
    rows = {}
    with training.main_process_first(local=False):
        for length in dict.fromkeys(phase.sequence_length for phase in phases):
            rows[length] = token_store(
                dataset, dataset_digest, data.dataset_config, tokenizer, data.tokenizer, length, data.token_stores
            )
    if training.max_steps <= 0:
        if data.phases:
            raise InputError("phases are shares of max_steps; give max_steps")
        training.max_steps = math.ceil(
            training.num_train_epochs * len(rows[data.sequence_length]) / description["rows_per_step"]
        )
    batches = training.gradient_accumulation_steps * training.world_size
    run_phases = [
        Phase(
            rows[phase.sequence_length],
            steps,
            batches * phase.rows_per_batch(data.sequence_length, training.train_batch_size),
        )
        for phase, steps in zip(phases, step_ranges(phases, training.max_steps), strict=True)
    ]
    held_out = HeldOut.of(
        *rows[data.sequence_length].validation(data.eval_documents),
        data.sequence_length,
        tokenizer.eos_token_id,
        tokenizer.mask_token_id,
    )
    training.output_dir = str(folder)
    training.push_to_hub, training.hub_token = False, None  # the publisher does it, in our layout
    training.remove_unused_columns = False
    training.dataloader_pin_memory &= torch.cuda.is_available()
    training.accelerator_config.even_batches = False  # StepBatches are even, and of a size that changes by phases
    training.ddp_find_unused_parameters = False
    training.logging_nan_inf_filter = False  # the trainer looks itself, and less often
    training.metric_for_best_model, training.greater_is_better = "loss", False
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "logs")
    logging.disable_progress_bar()  # of files being written; the training's own stays
    try:
        trainer = FlexQwenTrainer(
            model=model,
            args=training,
            train_dataset=TrainingRows(run_phases, objective, training.seed),
            processing_class=tokenizer,
            objective=objective,
            held_out=held_out,
            muon=training.muon,
        )
        trainer.create_optimizer_and_scheduler(training.max_steps)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"the trainer cannot be made: {' '.join(str(error).split())}") from error
    trainer.optimizer = trainer.lr_scheduler = None  # made again once the model lies where it trains
    description["parameters"] = parameters = sum(parameter.numel() for parameter in model.parameters())
    if training.process_index == 0:
        if state == "new":
            runs.begin(folder, description)
            save_code(folder.parent)
        else:
            runs.go_on(folder, description)
    found = runs.last_checkpoint(folder) if state == "resume" and training.process_index == 0 else None
    (checkpoint,) = broadcast_object_list([found])  # all processes go on from the one that the first has found
    if training.process_index == 0:
        print(
            f"run: {folder}, {parameters:,} parameters, {training.max_steps:,} steps of up to "
            f"{run_phases[-1].tokens_per_step:,} tokens" + (f", going on from {checkpoint.name}" if checkpoint else "")
        )
    if publisher is None:
        complete(trainer, folder, checkpoint)
        return
    trainer.add_callback(publisher)
    with publisher.publishing():
        complete(trainer, folder, checkpoint)


def complete(trainer: FlexQwenTrainer, folder: Path, checkpoint: Path | None) -> None:
    """Trains to the last step, from a checkpoint if there is one, and writes what a finished run has."""
    training = trainer.args
    try:
        trainer.resume(checkpoint)
        if trainer.state.global_step < training.max_steps:
            if trainer.is_world_process_zero():
                last = runs.last_checkpoint(folder)
                print(f"stopped at step {trainer.state.global_step}: {last}; the same command goes on", file=sys.stderr)
            sys.exit(130)
        if not (folder / "best").is_dir():
            trainer.state.best_metric = None
            trainer.evaluate_and_keep_best()
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of memory at step {trainer.state.global_step + 1} ({' '.join(str(error).split())[:150]}); lower "
            "per_device_train_batch_size and raise gradient_accumulation_steps by as much, or set "
            "gradient_checkpointing, or lower sequence_length or, if it was in evaluation, per_device_eval_batch_size"
        ) from error
    if not trainer.is_world_process_zero():
        return
    if not (folder / "best").is_dir():
        raise InputError(f"the held-out loss of {folder} is not a number; lower the learning rate and run again")
    draw_loss_curves(folder)
    write_json(folder / "finished.json", {"step": trainer.state.global_step, "best_loss": trainer.state.best_metric})
    print(f"checkpoint: {folder / 'best'}\nlogs:       {folder / 'logs'}, {folder / 'metrics.jsonl'}")
    print(f"figure:     {folder / 'loss.png'}")


def publisher_of(args: settings.Arguments, folder: Path) -> Publisher | None:
    """What publishes the run, where that is asked for; a tokenizer that only the repository has is fetched from it."""
    training = args.training
    if not training.push_to_hub or training.process_index:
        return None
    if not training.hub_model_id:
        raise InputError("push_to_hub needs --hub_model_id <user or organisation>/<name>")
    if training.hub_strategy != "every_save":
        raise InputError(f"hub_strategy is {training.hub_strategy.value}; only every_save is supported")
    repository = Repository(
        training.hub_model_id,
        token=training.hub_token,
        private=training.hub_private_repo,
        revision=training.hub_revision,
    )
    publisher = Publisher(repository, folder, Path(args.data.tokenizer))
    publisher.look()
    return publisher


def check(args: settings.Arguments) -> None:
    """What can be seen to be wrong before any work.

    Raises:
        InputError: one line that says what and what to do.
    """
    data, training = args.data, args.training
    if not (Path(data.tokenizer) / "tokenizer.json").is_file():
        raise InputError(f"no tokenizer in {data.tokenizer}; make it with python -m flexqwen tokenizer")
    for name, value, least in (
        ("per_device_train_batch_size", training.train_batch_size, 1),
        ("gradient_accumulation_steps", training.gradient_accumulation_steps, 1),
        ("eval_documents", data.eval_documents, 1),
        ("learning_rate", training.learning_rate, 0),
        ("weight_decay", training.weight_decay, 0),
    ):
        if not value >= least:
            raise InputError(f"{name} is {value}; it must be at least {least}")
    if training.muon and "optim" in args.given:
        raise InputError(f"muon and optim: {training.optim.value} are both set; leave one of them out")
    if training.fp16:
        raise InputError("fp16 is not supported: the loss makes its gradients before they could be scaled; use bf16")
    if training.max_steps <= 0 and not training.num_train_epochs > 0:
        raise InputError(f"num_train_epochs is {training.num_train_epochs}; it must be above 0")
    if training.max_steps == 0:
        raise InputError("max_steps is 0; it must be at least 1, or absent, when num_train_epochs counts")
    for name in ("eval_strategy", "save_strategy"):
        if getattr(training, name) == "epoch":
            raise InputError(f"{name} is epoch; a run is one pass over its steps, so use steps")
    if training.n_gpu > 1:
        raise InputError("several GPUs in one process are not supported; start one process for each with torchrun")
    if checkpoint := args.model.model_name_or_path:
        try:
            own = cached_file(checkpoint, "tokenizer.json")
        except OSError:  # it has none of this kind: nothing to compare with
            return
        one, other = (Tokenizer.from_file(str(path)).get_vocab() for path in (own, f"{data.tokenizer}/tokenizer.json"))
        if one != other:
            raise InputError(
                f"{data.tokenizer} has not the vocabulary of {checkpoint}; pass --tokenizer {checkpoint}, or what "
                f"python -m flexqwen tokenizer --adapt {checkpoint} makes of it"
            )


if __name__ == "__main__":
    main()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # its threads, left running, now and then abort the process at exit
