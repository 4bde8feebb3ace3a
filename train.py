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
from transformers import AutoTokenizer, set_seed
from transformers.utils import logging

from flexqwen import arguments as settings
from flexqwen import runs
from flexqwen.cli import InputError, command
from flexqwen.held_out import held_out
from flexqwen.model import build_model, save_code
from flexqwen.objectives import TrainingRows, collate
from flexqwen.outputs import file_digest, versions, write_json
from flexqwen.packing import token_store
from flexqwen.plots import loss_curves
from flexqwen.texts import dataset_digest
from flexqwen.trainer import FlexQwenTrainer


@command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = settings.parse(argv)
    model_args, data, objective, training = args.model, args.data, args.objective, args.training
    if not (Path(data.tokenizer) / "tokenizer.json").is_file():
        raise InputError(f"no tokenizer in {data.tokenizer}; make it with python -m flexqwen.tokenizer")
    digests = {
        "dataset": dataset_digest(data.dataset),
        "tokenizer": file_digest(Path(data.tokenizer) / "tokenizer.json"),
    }
    folder = runs.run_folder(args)
    made_by = versions("torch", "transformers", "accelerate", "tokenizers", "numpy")
    description = runs.describe(args, digests, made_by, ["train.py", *argv])
    state = runs.state_of(folder, description, training.overwrite)
    if state == "finished":
        print(f"run: {folder} is already finished, with the same settings and data; reused")
        return

    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer, model_max_length=data.sequence_length)
    if missing := [name for name in ("bos", "eos", "pad", "mask") if getattr(tokenizer, f"{name}_token_id") is None]:
        raise InputError(f"the tokenizer in {data.tokenizer} has no {missing[0]} token; training needs it")
    for name, value in (
        ("per_device_train_batch_size", training.train_batch_size),
        ("eval_documents", data.eval_documents),
    ):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if training.n_gpu > 1:
        raise InputError("several GPUs in one process are not supported; start one process for each with torchrun")
    own = Path(model_args.model_name_or_path or "") / "tokenizer.json"
    if model_args.model_name_or_path and own.is_file() and file_digest(own) != digests["tokenizer"]:
        raise InputError(f"{data.tokenizer} is not the tokenizer of {own.parent}; pass --tokenizer {own.parent}")
    set_seed(training.seed)
    try:
        model = build_model(model_args, objective, tokenizer, data.sequence_length)
    except (ValueError, OSError, ImportError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"the model cannot be made: {' '.join(str(error).split())}") from error
    with training.main_process_first(local=False):
        rows = token_store(
            data.dataset, data.dataset_config, tokenizer, data.tokenizer, data.sequence_length, data.token_stores
        )
    rows_per_step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    if training.max_steps <= 0:
        training.max_steps = math.ceil(training.num_train_epochs * len(rows) / rows_per_step)
    training.output_dir = str(folder)
    training.remove_unused_columns = False
    training.dataloader_pin_memory &= torch.cuda.is_available()
    training.metric_for_best_model, training.greater_is_better = "loss", False
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "logs"))
    logging.disable_progress_bar()  # of files being written; the training's own stays
    text = held_out(data.dataset, "validation", tokenizer, data.sequence_length, data.eval_documents)
    if state == "new" and training.process_index == 0:
        runs.begin(folder, description)
        save_code(folder.parent)
    trainer = FlexQwenTrainer(
        model=model,
        args=training,
        train_dataset=TrainingRows(rows, objective, training.seed, training.max_steps, rows_per_step),
        eval_dataset="held-out",
        data_collator=collate,
        processing_class=tokenizer,
        objective=objective,
        held_out=text,
    )
    checkpoint = runs.last_checkpoint(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"run: {folder}, {parameters:,} parameters, {training.max_steps:,} steps of {trainer.tokens_per_step:,} tokens"
        + (f", going on from {checkpoint.name}" if checkpoint else "")
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not (folder / "best").is_dir():
        trainer.evaluate_and_keep_best()
    if not trainer.is_world_process_zero():
        return
    if not (folder / "best").is_dir():
        raise InputError(f"the held-out loss of {folder} is not a number; lower the learning rate and run again")
    loss_curves(folder)
    write_json(folder / "finished.json", {"step": trainer.state.global_step, "best_loss": trainer.state.best_metric})
    print(f"checkpoint: {folder / 'best'}\nlogs:       {folder / 'logs'}, {folder / 'metrics.jsonl'}")
    print(f"figure:     {folder / 'loss.png'}")


if __name__ == "__main__":
    main()
