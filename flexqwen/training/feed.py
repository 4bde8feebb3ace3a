"""What a run trains on, and what it is measured on."""

import math

from flexqwen.cli import InputError
from flexqwen.data.packing import PackedRows, make_token_store
from flexqwen.evaluation.heldout import HeldOut
from flexqwen.training.arguments import Arguments
from flexqwen.training.schedule import Phase, parse_phases, plan_phases


def load_data(args: Arguments, dataset: str, dataset_digest: str, tokenizer) -> tuple[list[Phase], HeldOut]:
    """Opens the packed rows of every phase, which are made where they are not there, and the held-out documents.

    Sets `max_steps` where `num_train_epochs` counts. The folder `dataset` need not be there if its rows are.
    """
    data, training = args.data, args.training
    settings = parse_phases(data.phases, data.sequence_length)
    named = PackedRows(data.token_store) if data.token_store else None
    root = str(named.folder.parent) if named else data.token_stores
    source = None if named else dataset, dataset_digest, data.dataset_config, tokenizer, data.tokenizer
    sample = data.unique_tokens, training.seed
    rows = {
        length: named if named and length == data.sequence_length else make_token_store(*source, length, root, *sample)
        for length in dict.fromkeys(phase.sequence_length for phase in settings)
    }
    last, batches = rows[data.sequence_length], training.gradient_accumulation_steps * training.world_size
    if training.max_steps <= 0:
        rows_per_step = training.train_batch_size * batches
        training.max_steps = math.ceil(training.num_train_epochs * len(last) / rows_per_step)
    phases = plan_phases(settings, rows, training.max_steps, training.train_batch_size, batches)
    if args.objective.strategy == "alternating" and all(phase.passes <= 1 for phase in phases):
        raise InputError(
            f"strategy alternating changes the mode after each pass over the data, and {training.max_steps} steps are "
            f"{max(phase.passes for phase in phases):.2f} of one: no masked row would be trained; raise max_steps"
        )
    documents, sizes = last.validation(data.eval_documents)
    held_out = HeldOut.of(documents, sizes, data.sequence_length, tokenizer)
    return phases, held_out
