"""Trains a FlexQwen: settings -> data -> model -> transformers.Trainer -> checkpoints, logs, Hub.

    python train.py configs/quickstart.yaml [--learning_rate 1e-3 ...]

Options are the Trainer's own and those of flexqwen/training/; `python train.py --help` lists them. The same command
resumes a run that was interrupted, and says so when there is nothing left to do.
"""

import contextlib
import functools
import sys

from flexqwen.cli import command, existing, lasting_output


@command
@lasting_output()
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        existing(argv[0])
    from flexqwen.training.arguments import check, parse

    args = parse(argv)
    check(args)
    from accelerate.utils import broadcast_object_list
    from transformers import set_seed
    from transformers.utils import logging

    from flexqwen.hub.publisher import make_publisher, publishing
    from flexqwen.remote import fetch_snapshot
    from flexqwen.training.checkpoints import last_checkpoint
    from flexqwen.training.compat import main_process_first
    from flexqwen.training.feed import load_data
    from flexqwen.training.model import build_model, load_tokenizer
    from flexqwen.training.runs import describe_run, find_state, finish_run, lock_run, run_folder, start_run
    from flexqwen.training.trainer import FlexQwenTrainer

    training, folder = args.training, run_folder(args)
    logging.disable_progress_bar()  # of files being written; the training's own stays

    # What the run is, and how far it has got, here or on the Hub
    with main_process_first(training):
        publisher = make_publisher(args, folder)
        files = ["manifest.json", f"data/{args.data.dataset_config}/*", "data/heldout/*"]
        dataset = fetch_snapshot(args.data.dataset, "dataset", files, training.hub_token)
    description = describe_run(args, dataset, argv)
    with lock_run(folder) if training.process_index == 0 else contextlib.nullcontext():
        with main_process_first(training):
            state = find_state(folder, description, training)
            if publisher and publisher.restore(description, state):
                state = find_state(folder, description, training)
        if state == "finished":
            print(f"run: {folder} is already finished, with the same settings and data; reused")
            with publishing(publisher):
                return

        # Model, data, trainer
        tokenizer = load_tokenizer(args.data.tokenizer, args.data.sequence_length)
        set_seed(training.seed)
        model = build_model(args.model, args.objective, tokenizer)
        with main_process_first(training):
            phases, held_out = load_data(args, dataset, description["digests"]["dataset"], tokenizer)
        trainer = FlexQwenTrainer(args, folder, model, tokenizer, phases, held_out)

        # Training
        found = last_checkpoint(folder) if state == "resume" and training.process_index == 0 else None
        (checkpoint,) = broadcast_object_list([found])  # all processes resume from the one that the first has found
        start = functools.partial(start_run, folder, description, trainer, checkpoint)
        with publishing(publisher, trainer):
            if not trainer.train_to_end(checkpoint, start):
                sys.exit(130)
            finish_run(folder, trainer)


if __name__ == "__main__":
    main()
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()  # its threads, left running, now and then abort the process at exit
