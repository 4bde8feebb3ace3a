"""FlexQwen's training against the official code of its two closest peers, and against stock Qwen3 and Trainer.

    git clone https://github.com/ltgoslo/gpt-bert; git clone https://github.com/ltgoslo/dual-language-models
    python benchmarks/peers.py --gpt_bert gpt-bert --dual dual-language-models --dataset carolina_originality
        [--minutes 30] [--seeds 3] [--sweep_minutes 3] [--output result.json]

`ours` is train.py with `--config` and `--recipe`. `gpt_bert` and `dual` are the peers' own models, data sets, losses,
optimisers, schedules and default settings, imported from the checkouts; `gpt_bert@0.0625` has another share of masked
rows. `stock` is `Qwen3ForCausalLM`, AdamW and `transformers.Trainer` at the rate and schedule of `--config`, on
documents joined and cut into blocks.

All have the same documents, tokenizer, tokens of a step, longest row, parameters (the peers' feed-forward width is
fitted), precision and time, and one thread. Time is the run's processor time without that of evaluation: what a clock
shows on an idle machine, and still fair on a busy one. The peers' schedules follow the share of the time that is over;
`ours` and `stock` get as many steps as fit. `half` is `ours` with a schedule of half of the time. With
`--sweep_minutes`, each side first tries half, once and twice its own learning rate, and goes on from an end that is
best. flexqwen/evaluation scores every side on the same held-out documents, masking groups and minimal pairs. The result
says what was patched in a peer. A finished run is not run again.
"""

import argparse
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, set_seed

from flexqwen.data.packing import IGNORE, encode_documents
from flexqwen.data.texts import dataset_digest, read_texts
from flexqwen.evaluation import heldout
from flexqwen.evaluation.likelihood import Scorer
from flexqwen.evaluation.statistics import joint_interval
from flexqwen.evaluation.tasks import Context, load_task
from flexqwen.files import atomic_write, digest, file_digest, read_json, versions, write_json
from flexqwen.tables import markdown_table
from flexqwen.training.arguments import parse
from flexqwen.training.cpu import has_bfloat16

ROOT = Path(__file__).resolve().parents[1]
METRICS = [f"{figure}_{mode}" for figure in ("bits_per_byte", "pairs") for mode in heldout.MODES]
RECIPE = '--causal_fraction 0.75 --phases {"until":0.5,"sequence_length":64} {"until":0.8,"sequence_length":128} '
RECIPE += '{"until":1.0,"sequence_length":256}'  # short rows first, and the share of configs/small.yaml
RATES = (1.0, 0.5, 2.0)  # that the sweep begins with, times a side's own learning rate
STEPS = 100_000  # of the peers' schedules, which are walked through as time passes
CALIBRATION = 40  # steps that tell how many fit into the time
FORMAT = 3  # of a run's file
HALF = "half"  # the side that is ours in half of the time


class Clock:
    """Seconds of processor time, and of the clock, since `restart`, without what was spent in `paused`."""

    def restart(self) -> None:
        self.begin = np.array([time.process_time(), time.perf_counter()])

    __init__ = restart

    def read(self) -> np.ndarray:
        return np.array([time.process_time(), time.perf_counter()]) - self.begin

    @contextmanager
    def paused(self):
        before = self.read()
        yield
        self.begin += self.read() - before


class Recorder:
    """The curve of a run: a point before training, one at each mark (an equal share of the time), one at the end.

    Pairs take long, so they are scored before training, in the middle and at the end only.
    """

    def __init__(self, cell: dict, tokenizer, length: int):
        texts = [text for _, text in read_texts(cell["dataset"], "heldout", "test", cell["documents"])]
        self.text = heldout.tokenize_texts(texts, tokenizer, length)
        self.task, self.context = load_task("minimal_pairs"), Context(limit=cell["limit"] or None, mask_groups=7)
        self.pairs = self.task.load_items(self.context) if cell["limit"] else []
        self.budget, self.marks, self.tokenizer = cell["minutes"] * 60, cell["marks"], tokenizer
        self.clock, self.curve = Clock(), []

    def record(self, model, tokens: int, with_pairs: bool = True) -> None:
        """Scores a model that was trained on so many tokens; the clock stands still, and random numbers are kept."""
        if not tokens:
            self.clock.restart()
        with self.clock.paused(), torch.random.fork_rng(devices=[]):
            seconds, wall = self.clock.read()
            point = {"seconds": seconds, "wall_seconds": wall, "tokens": tokens}
            was_training = model.training
            scorer = Scorer(model, self.tokenizer, "flexqwen")  # which ends training mode, and so dropout
            for mode in getattr(model, "modes", heldout.MODES):
                nats = heldout.score(model, self.text, mode, 2048)
                point[f"nats_per_token_{mode}"] = nats.sum() / self.text.tokens.sum()
                point[f"bits_per_byte_{mode}"] = nats.sum() / math.log(2) / self.text.bytes.sum()
                if self.pairs and with_pairs:
                    point[f"pairs_{mode}"] = self.task.evaluate(scorer, self.pairs, mode, self.context)[0].value
            model.train(was_training)
            self.curve.append({name: float(value) for name, value in point.items()})
            print(self.curve[-1], file=sys.stderr, flush=True)

    def record_if_due(self, model, tokens: int) -> None:
        if len(self.curve) < self.marks and self.clock.read()[0] >= self.budget * len(self.curve) / self.marks:
            self.record(model, tokens, with_pairs=len(self.curve) == self.marks // 2)


class Peer(torch.nn.Module):
    """Another system's model, which predicts the next token, behind what scoring asks of a `FlexQwenForCausalLM`.

    Args:
        encode: from tokens (int64) and which of them are real (bool), `(batch, sequence)` each, and whether attention
            is causal, to hidden states `(batch, sequence, hidden)`.
        head: from hidden states to logits.
        unseen: a token that the system's own data do not have; hidden from it.
    """

    def __init__(self, model, encode, head, vocab_size: int, length: int, modes=heldout.MODES, unseen: int = -1):
        super().__init__()
        self.model, self.head, self.modes, self.unseen = model, head, modes, unseen
        self.base_model = torch.nn.Identity()  # scoring hooks it
        self.encode, self.device = encode, next(model.parameters()).device
        shape = {"vocab_size": vocab_size, "max_position_embeddings": length}
        self.config = SimpleNamespace(model_type="flexqwen", masked_prediction="next_token", **shape)

    def forward(self, input_ids, attention_mask=None, labels=None, is_causal: bool = True, **kwargs):
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.encode(input_ids, real.bool() & (input_ids != self.unseen), is_causal)
        states = self.base_model(SimpleNamespace(last_hidden_state=states)).last_hidden_state
        if labels is None:
            return SimpleNamespace(logits=self.head(states))
        row, column = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        nats = F.cross_entropy(self.head(states[row, column]).float(), labels[row, column + 1], reduction="none")
        return SimpleNamespace(row_losses=torch.zeros(len(labels)).index_add(0, row, nats))


class GptBert:
    """`ltgoslo/gpt-bert`. Its processes have one mode each; here the rows of a batch do, and weigh the same.

    Settings, model, optimiser and schedule come from pretraining/train_10m.py, the loss of two modes from
    `Bert.forward` with `num_masked`.
    """

    masked_fraction, path = 15 / 16, "pretraining"
    patched = (
        "wandb is not imported, and DistributedDataParallel is left out: one process",
        "no average of the weights: their script saves one, and validates without it",
        "rows grow at 70 and 90 % of the time and batches steadily, by load_datasets' rule, not only between epochs",
    )

    def __init__(self, cell: dict, tokenizer, shape, parameters: int):
        folder, length = Path(cell["gpt_bert"]), shape.max_position_embeddings
        self.script, self.args = script, args = load_script(cell, "train_10m", [], tokenizer)
        script.DistributedDataParallel = lambda model, **_: SimpleNamespace(module=model)
        torch.cuda.get_device_properties = lambda *_: SimpleNamespace(total_memory=0)
        args.seq_length = length // 4  # rows grow fourfold
        size = {"num_hidden_layers": shape.num_hidden_layers, "max_position_embeddings": length}
        args.config_file = fit_width(script.Bert, folder / "configs/small.json", size, shape, parameters, cell)
        wrapped, _, self.optimizer, self.scheduler, *_ = script.prepare_model_and_optimizer(args)
        self.model, self.cell, self.row_length, self.owed = wrapped.module, cell, None, 0.0
        self.names, self.head = special_tokens(tokenizer), self.model.classifier.nonlinearity

    def encode(self, input_ids, real, is_causal: bool):
        return self.model.get_contextualized(input_ids.t(), hidden_places(real, is_causal)).transpose(0, 1)

    def own_loss(self, input_ids) -> float:
        hidden = hidden_places(torch.ones_like(input_ids[:, 1:]).bool(), True)
        return self.model(input_ids[:, :-1].t(), hidden, input_ids[:, 1:].t())[0].item()

    def step(self, progress: float, clock: Clock) -> int:
        """One optimiser step, when this share of the time is over; the number of its tokens."""
        args, length = self.args, self.args.seq_length * (4 if progress >= 0.9 else 2 if progress >= 0.7 else 1)
        if length != self.row_length:
            self.row_length, path = length, f"{self.cell['documents_folder']}/0.bin"
            kinds = (self.script.MaskedDataset, self.script.CausalDataset)
            with clock.paused():  # cutting documents is not training, for any side
                self.data = [kind(path, self.names, args, length, None, 1) for kind in kinds]
            self.order = [endless_order(len(data)) for data in self.data]
        most = self.cell["tokens_per_step"] // length
        rows = int(most / args.batch_reduction * (1 - progress) + most * progress + 0.5)
        masked, self.owed = masked_rows(rows, self.cell["masked_fraction"], self.owed)
        items = []
        for data, order, count in zip(self.data, self.order, (masked, rows - masked), strict=True):
            data.set_global_step(int(progress * STEPS))
            items += [data[next(order)] for _ in range(count)]
        input_ids, labels, hidden, _ = torch.utils.data.default_collate(items)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.cell["bf16"]):
            found = self.model(input_ids.t(), hidden, labels.t(), masked, masked / rows)
        (found[0] + args.z_loss_weight * found[6]).backward()
        update(self, progress)
        return rows * length


class Dual:
    """`ltgoslo/dual-language-models`: causal prediction and masked diffusion.

    Settings, model, optimiser and schedule come from run_pretraining.py. Its processes have one mode each; here a step
    does one mode after the other, weighed by their rows.
    """

    masked_fraction, path = 3 / 4, ""
    patched = (
        "wandb is not imported, and DistributedDataParallel and .cuda() are left out: one process",
        "flex_attention, which has no backward pass on a CPU, is scaled_dot_product_attention with the same mask",
        "torch.compile of Newton-Schulz is left out: compiling would take their time",
        "embeddings are tied (tie_weights, false in configs/large.json): else they are 60 % of so small a model",
        "n_repetitions is 1: all documents, as for the other sides",
    )

    def __init__(self, cell: dict, tokenizer, shape, parameters: int):
        folder, length = Path(cell["dual"]), shape.max_position_embeddings
        options = ["--output_dir", cell["scratch"], "--n_repetitions", "1"]
        compile, torch.compile = torch.compile, lambda function: function
        script, args = load_script(cell, "dual_language_models.run_pretraining", options, tokenizer)
        torch.compile = compile
        code = sys.modules["dual_language_models.model.model"]
        code.flex_attention, code.create_block_mask = attention_on_cpu, lambda mask_mod, *_, **__: mask_mod
        script.DDP, script.Model.cuda = lambda model, **_: model, lambda model, *_: model
        size = {"num_layers": shape.num_hidden_layers, "d_h": shape.head_dim, "max_sequence_length": length}
        size |= {"tie_weights": True, "dataset_type": "causal"}
        args.config_file = fit_width(script.Model, folder / "configs/large.json", size, shape, parameters, cell)
        args.untie, args.max_seq_length = False, length
        self.model, _, self.optimizer, self.scheduler, *_ = script.prepare_model_and_optimizer(args)
        kinds = {"masked": script.DiffusionDatasetv2, "causal": script.CausalDatasetv2}
        data = (cell["documents_folder"], special_tokens(tokenizer), args, length, 0)
        self.data = {name: kind(*data) for name, kind in kinds.items()}
        self.args, self.cell, self.owed, self.head = args, cell, 0.0, self.model.classifier

    def encode(self, input_ids, real, is_causal: bool):
        self.model.change_model_type("causal" if is_causal else "masked", input_ids.device)
        return self.model.get_encodings(input_ids.t(), real.int()).transpose(0, 1)

    def own_loss(self, input_ids) -> float:
        self.model.change_model_type("causal", input_ids.device)
        of_one = torch.zeros_like(input_ids[:, 1:])
        return self.model(input_ids[:, :-1].t(), of_one, input_ids[:, 1:].t()).loss.mean().item()

    def step(self, progress: float, clock: Clock) -> int:
        """One optimiser step, when this share of the time is over; the number of its tokens."""
        args, all_rows = self.args, self.cell["tokens_per_step"] // self.args.max_seq_length
        masked, self.owed = masked_rows(all_rows, self.cell["masked_fraction"], self.owed)
        for kind, rows in (("masked", masked), ("causal", all_rows - masked)):
            if rows:
                self.model.change_model_type(kind, args.device)
                input_ids, labels, documents, rate = self.data[kind].next(args.max_seq_length, rows)
                output = self.model(input_ids.t(), documents, labels.t())
                weight = 1 / rate.t()[labels.t() != IGNORE] if kind == "masked" else 2.0
                loss = ((output.loss + args.z_loss_weight * output.z_loss) / input_ids.numel() * weight).sum()
                (loss * rows / all_rows).backward()
        update(self, progress)
        return all_rows * args.max_seq_length


PEERS = {"gpt_bert": GptBert, "dual": Dual}


def load_script(cell: dict, name: str, options: list[str], tokenizer):
    """A peer's training script, which `run` put on the path, and its default settings with our tokenizer and seed."""
    os.environ["SLURM_PROCID"] = "1"  # they import wandb in process 0 only
    script = importlib.import_module(name)
    sys.argv = [name, *options]
    args = script.parse_arguments()
    script.is_main_process = lambda: False
    args.n_special_tokens, args.vocab_size, args.seed = 4, len(tokenizer), cell["seed"]
    args.learning_rate, args.max_steps = args.learning_rate * cell["rate"], STEPS
    args.device, args.local_rank = torch.device("cpu"), 0
    script.seed_everything(cell["seed"])
    return script, args


def special_tokens(tokenizer) -> SimpleNamespace:
    """Our special tokens by the peers' names; their code takes the first ids for special."""
    ids = {"<pad>": tokenizer.pad_token_id, "<s>": tokenizer.bos_token_id, "<mask>": tokenizer.mask_token_id}
    if {*ids.values(), tokenizer.eos_token_id} != {0, 1, 2, 3}:
        raise SystemExit(f"the peers' code wants the four special tokens to be the first ids; got {ids}")
    return SimpleNamespace(token_to_id=ids.__getitem__)


def fit_width(kind, file: Path, size: dict, shape, parameters: int, cell: dict) -> Path:
    """Writes a peer's configuration in our size, with the feed-forward width that gives as many parameters."""
    config = read_json(file) | {name: getattr(shape, name) for name in ("hidden_size", "num_attention_heads")}
    config |= {"vocab_size": shape.vocab_size, **size}

    def count(width: int) -> int:
        return count_parameters(kind(SimpleNamespace(**config | {"intermediate_size": width})))

    width = round(8 + 8 * (parameters - count(8)) / (count(16) - count(8)))
    write_json(Path(cell["scratch"]) / "config.json", config | {"intermediate_size": width})
    return Path(cell["scratch"]) / "config.json"


def hidden_places(real, is_causal: bool):
    """What gpt-bert calls the attention mask: bool `(batch, query, key)`, true where a query must not look."""
    hidden = ~real[:, None, :].expand(-1, real.shape[1], -1)
    return hidden | torch.ones_like(hidden).triu(1) if is_causal else hidden


def attention_on_cpu(query, key, value, block_mask, score_mod):
    """What `flex_attention` computes from a mask function and a score function; both are evaluated everywhere."""
    batch, _, length, _ = query.shape
    places = torch.arange(length)
    where = (torch.arange(batch)[:, None, None], 0, places[:, None], places)
    bias = score_mod(torch.zeros(batch, length, length), *where).masked_fill(~block_mask(*where), -math.inf)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias[:, None].to(query.dtype))


def masked_rows(rows: int, fraction: float, owed: float) -> tuple[int, float]:
    """How many of a step's rows are masked, so that their share is right over many steps; and what is left over."""
    wanted = owed + rows * fraction
    return int(wanted), wanted - int(wanted)


def endless_order(size: int):
    """Numbers below `size`, each once a pass, in a new order each pass."""
    while True:
        yield from torch.randperm(size).tolist()


def update(peer, progress: float) -> None:
    """Clips, and steps at the learning rate of this share of the schedule."""
    torch.nn.utils.clip_grad_norm_(peer.model.parameters(), peer.args.max_gradient)
    schedule = peer.scheduler
    for group, rate, rule in zip(peer.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = rate * rule(int(progress * STEPS))
    peer.optimizer.step()
    peer.optimizer.zero_grad(set_to_none=True)


def train_peer(cell: dict, recorder: Recorder, tokenizer, shape, parameters: int) -> dict:
    """Trains a peer until its time is over."""
    peer = PEERS[cell["side"]](cell, tokenizer, shape, parameters)
    length, unseen = shape.max_position_embeddings, tokenizer.eos_token_id
    model = Peer(peer.model, peer.encode, peer.head, shape.vocab_size, length, unseen=unseen)
    losses = check_scoring(peer, model, [piece for piece, _ in recorder.text.pieces[:8]])
    tokens = 0
    recorder.record(model, tokens)
    while (now := recorder.clock.read()[0]) < recorder.budget:
        tokens += peer.step(now / recorder.budget, recorder.clock)
        recorder.record_if_due(model, tokens)
    recorder.record(model, tokens)
    names = ("learning_rate", "weight_decay", "max_gradient", "z_loss_weight")
    own = {name: getattr(peer.args, name) for name in names} | read_json(peer.args.config_file)
    return {"patched": list(peer.patched), "untrained": losses, "settings": own, "model": peer.model}


@torch.no_grad()
def check_scoring(peer, model: Peer, pieces: list) -> dict:
    """Causal nats per token of the untrained model on one batch: by the peer's own loss, and by our scoring."""
    length = min(map(len, pieces)) - 1
    sample = torch.from_numpy(np.stack([piece[:length] for piece in pieces]))
    model.eval()
    theirs, ours = peer.own_loss(sample), model(sample, labels=sample).row_losses.sum().item() / sample[:, 1:].numel()
    model.train()
    if abs(ours / theirs - 1) > 0.01:
        raise SystemExit(f"{type(peer).__name__}: the untrained loss is {theirs:.4f} by its code, {ours:.4f} by ours")
    return {"by_its_own_code": theirs, "by_ours": ours}


class Marks(TrainerCallback):
    """Records the run of a Trainer, and the time of each step."""

    def __init__(self, recorder: Recorder, tokens, wrap=lambda model: model):
        self.recorder, self.tokens, self.wrap, self.times = recorder, tokens, wrap, []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.recorder.record(self.wrap(model), 0)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.times.append(self.recorder.clock.read()[0])  # which stands still while a mark is scored
        is_last = state.global_step >= state.max_steps
        record = self.recorder.record if is_last else self.recorder.record_if_due
        record(self.wrap(model), self.tokens(state.global_step))


def run_for(seconds: float, run, recorder: Recorder):
    """Calls `run(max_steps, recorder)` with as many steps as fit; it returns its Marks and the model."""
    times = run(CALIBRATION, recorder)[0].times[CALIBRATION // 4 :]  # the first steps take longer
    recorder.curve.clear()  # made all the same: after scoring, the allocator keeps more, and stock's steps are faster
    return run(max(1, round(seconds * (len(times) - 1) / (times[-1] - times[0]))), recorder)[1]


def train_ours(cell: dict, recorder: Recorder, options: list[str], learning_rate: float) -> dict:
    """train.py's own `main`, with a Trainer that keeps our curve."""
    import train
    from flexqwen.training import trainer

    made, trainer_class = [], trainer.FlexQwenTrainer

    def run(max_steps: int, recorder: Recorder):
        def make(*args):
            made.append(trainer_class(*args))
            made[-1].marks = Marks(recorder, made[-1].metrics.tokens_seen)
            made[-1].add_callback(made[-1].marks)
            return made[-1]

        trainer.FlexQwenTrainer = make
        given = {name: cell[name] for name in ("dataset", "dataset_config", "tokenizer", "seed")}
        given |= {"token_stores": f"{cell['documents_folder']}/tokens", "output_dir": f"{cell['scratch']}/{len(made)}"}
        given |= {"max_steps": max_steps, "learning_rate": learning_rate, "eval_documents": 1, "use_cpu": True}
        given |= {"eval_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
        train.main([*options, *(str(word) for name, value in given.items() for word in (f"--{name}", value))])
        return made[-1].marks, made[-1].model

    return {"patched": [], "model": run_for(recorder.budget, run, recorder)}


def train_stock(cell: dict, recorder: Recorder, tokenizer, shape, training) -> dict:
    """`Qwen3ForCausalLM` and the stock Trainer."""
    length = shape.max_position_embeddings
    begin, end = torch.tensor([tokenizer.bos_token_id]), torch.tensor([tokenizer.eos_token_id])
    documents = torch.load(f"{cell['documents_folder']}/0.bin")
    joined = torch.cat([part for document in documents for part in (begin, document, end)])
    blocks = joined[: len(joined) // length * length].view(-1, length)
    rows = [{"input_ids": block, "labels": block} for block in blocks]
    training.output_dir, training.seed = cell["scratch"], cell["seed"]
    training.save_strategy = training.eval_strategy = "no"
    training.report_to, training.disable_tqdm, training.logging_steps = [], True, 10**6
    training.learning_rate *= cell["rate"]

    def wrap(model):
        def encode(input_ids, real, is_causal):
            return model.model(input_ids=input_ids, attention_mask=real.long(), use_cache=False).last_hidden_state

        return Peer(model, encode, model.lm_head, shape.vocab_size, length, modes=("causal",))

    def run(max_steps: int, recorder: Recorder):
        set_seed(cell["seed"])
        model, training.max_steps = Qwen3ForCausalLM(shape), max_steps
        marks = Marks(recorder, lambda step: step * cell["tokens_per_step"], wrap)
        Trainer(model=model, args=training, train_dataset=rows, callbacks=[marks]).train()
        return marks, model

    return {"patched": [], "model": run_for(recorder.budget, run, recorder)}


def train_one(cell: dict) -> dict:
    """One run, in this process: its curve, and what made it."""
    options = [cell["config"], *cell["recipe"].split(), "--use_cpu", "true", "--bf16", str(cell["bf16"])]
    args = parse(options)
    length, training = args.data.sequence_length, args.training
    cell["tokens_per_step"] = training.train_batch_size * training.gradient_accumulation_steps * length
    tokenizer = AutoTokenizer.from_pretrained(cell["tokenizer"], model_max_length=length)
    shape = Qwen3Config(**vars(args.model), vocab_size=len(tokenizer), max_position_embeddings=length)
    parameters = count_parameters(Qwen3ForCausalLM(shape))
    recorder = Recorder(cell, tokenizer, length)
    if is_patched := cell["side"] in PEERS and not cell["bf16"]:
        torch.Tensor.bfloat16 = lambda tensor: tensor.to(torch.float32, copy=True)
    if cell["side"] == "ours":
        found = train_ours(cell, recorder, options, training.learning_rate * cell["rate"])
    elif cell["side"] == "stock":
        found = train_stock(cell, recorder, tokenizer, shape, training)
    else:
        found = train_peer(cell, recorder, tokenizer, shape, parameters)
    found["parameters"] = count_parameters(found.pop("model"))
    if abs(found["parameters"] / parameters - 1) > 0.03:
        raise SystemExit(f"{cell['side']} has {found['parameters']:,} parameters; {parameters:,} are wanted")
    if is_patched:
        found["patched"].append("float32 for bfloat16, in Newton-Schulz too, as our Muon has where bfloat16 is slow")
    last = recorder.curve[-1]
    return found | {"curve": recorder.curve, "tokens_per_second": last["tokens"] / last["seconds"]}


def count_parameters(model) -> int:
    return sum(weights.numel() for weights in model.parameters())


def write_documents(args) -> dict:
    """The documents as the peers' tokenizing scripts write them: token ids without special ones, a tensor each."""
    made_from = {"dataset": dataset_digest(args.dataset), "config": args.dataset_config}
    made_from["tokenizer"] = file_digest(Path(args.tokenizer) / "tokenizer.json")
    folder = Path(args.runs).resolve() / f"documents-{digest(made_from)[:12]}"
    if not (folder / "info.json").is_file():
        texts = (text for _, text in read_texts(args.dataset, args.dataset_config, "train"))
        encoded = encode_documents(AutoTokenizer.from_pretrained(args.tokenizer), texts)
        documents = [torch.tensor(document[1:-1], dtype=torch.int32) for document in encoded]
        with atomic_write(folder / "0.bin") as aside:
            torch.save(documents, aside)
        counts = {"documents": len(documents), "tokens": sum(map(len, documents))}
        write_json(folder / "info.json", made_from | counts | {"folder": str(folder)})
    return read_json(folder / "info.json")


def run(args, side: str, seed: int, rate: float, minutes: float, documents: dict) -> dict:
    """One run, in a process of its own with one thread at low priority, if it was not done already."""
    name, _, fraction = side.partition("@")
    cell = {"format": FORMAT, "side": name, "seed": seed, "rate": rate, "minutes": minutes, "bf16": bool(args.bf16)}
    cell |= {name: getattr(args, name) for name in ("dataset_config", "documents", "limit", "marks")}
    cell |= {name: str(Path(getattr(args, name)).resolve()) for name in ("config", "dataset", "tokenizer")}
    cell |= {"recipe": args.recipe if name == "ours" else "", "documents_folder": documents["folder"]}
    if name in PEERS:
        checkout = str(Path(getattr(args, name)).resolve())
        commit = subprocess.check_output(["git", "-C", checkout, "rev-parse", "HEAD"], text=True).strip()
        cell |= {name: checkout, "commit": commit}
        cell["masked_fraction"] = float(fraction or PEERS[name].masked_fraction)
    file = Path(args.runs).resolve() / f"{side}-{seed}-{rate:g}-{minutes:g}min.json"
    if (done := read_json(file)) and done["cell"] == cell:
        return done
    path = str(ROOT) + (f"{os.pathsep}{cell[name]}/{PEERS[name].path}" if name in PEERS else "")
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch, open(file.with_suffix(".log"), "w") as log:
        command = ["nice", sys.executable, __file__, "--one", json.dumps(cell | {"scratch": scratch})]
        if subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log).returncode:
            raise SystemExit(f"{side}, seed {seed} failed; see {log.name}")
        write_json(file, {"cell": cell} | read_json(Path(scratch) / "result.json"))
    return read_json(file)


def try_rates(args, side: str, documents: dict) -> dict[float, float]:
    """The loss by multiple of a side's own learning rate: `RATES`, and on from an end as long as that is best."""
    how = argparse.Namespace(**vars(args) | {"limit": 0, "marks": 1})  # only the loss at its end counts
    losses, rates = {}, RATES
    while rates:
        for rate in rates:
            end = run(how, side, 0, rate, args.sweep_minutes, documents)["curve"][-1]
            loss = np.mean([end[metric] for metric in METRICS[:2] if metric in end])
            losses[rate] = loss if np.isfinite(loss) else math.inf
        best = min(losses, key=losses.get)
        rates = [rate for rate in (best / 2, best * 2) if rate not in losses]
    return losses


def run_all(args, documents: dict) -> tuple[dict[str, list[dict]], dict[str, dict[float, float]]]:
    """The runs of every side and last of `HALF`, one of each seed, at the best rate or a side's own; and the sweep."""
    with ThreadPoolExecutor(args.workers) as pool:

        def together(cells: list[tuple]) -> list[dict]:
            return list(pool.map(lambda cell: run(args, *cell, documents), cells))

        if args.sweep_minutes:
            tried = list(pool.map(lambda side: try_rates(args, side, documents), args.sides))
        else:
            tried = [{1.0: None}] * len(args.sides)
        best = {side: min(losses, key=losses.get) for side, losses in zip(args.sides, tried, strict=True)}
        cells = [(side, seed, best[side], args.minutes) for seed in range(args.seeds) for side in args.sides]
        done = together(cells)
        ours = args.sides[0]
        halves = together([(ours, seed, best[ours], args.minutes / 2) for seed in range(args.seeds)])
    runs = {side: done[number :: len(args.sides)] for number, side in enumerate(args.sides)} | {HALF: halves}
    return runs, dict(zip(args.sides, tried, strict=True)) if args.sweep_minutes else {}


def at(curve: list[dict], axis: str, place: float, metric: str) -> float:
    """A curve's value at a place of an axis, on the line between two points; beyond the last, its value."""
    curve = [point for point in curve if metric in point]
    return float(np.interp(place, [point[axis] for point in curve], [point[metric] for point in curve]))


def seconds_to_reach(curve: list[dict], metric: str, value: float) -> float | None:
    """When a metric first falls to a value; None if it never does."""
    for before, after in itertools.pairwise(curve):
        if after[metric] <= value:
            share = (before[metric] - value) / (before[metric] - after[metric]) if before[metric] > value else 0.0
            return before["seconds"] + share * (after["seconds"] - before["seconds"])
    return None


def with_interval(differences: list[float]) -> dict:
    """Paired differences, their mean and Student's 95 % interval over seeds (None where there is one seed)."""
    mean, *interval = joint_interval(np.array(differences)[:, None], np.ones(1), [0])
    return {"differences": differences, "mean": mean, "interval": interval if len(differences) > 1 else None}


def compare(ours: list[dict], halves: list[dict], theirs: list[dict], seconds: float) -> dict[str, dict]:
    """For each metric ours less theirs, at equal time, at equal tokens and at the ends of `halves` and theirs.

    And the share of their time after which our curve has reached their last value.
    """
    found = {}
    pairs = [(one["curve"], other["curve"]) for one, other in zip(ours, theirs, strict=True)]
    for metric in (metric for metric in METRICS if metric in ours[0]["curve"][-1] and metric in theirs[0]["curve"][-1]):
        times = [(one, other, "seconds", seconds) for one, other in pairs]
        tokens = [(one, other, "tokens", min(one[-1]["tokens"], other[-1]["tokens"])) for one, other in pairs]
        found[metric] = {}
        for name, places in (("equal_time", times), ("equal_tokens", tokens)):
            found[metric][name] = with_interval(
                [at(a, *place, metric) - at(b, *place, metric) for a, b, *place in places]
            )
        ends = (
            (one["curve"][-1][metric], other["curve"][-1][metric]) for one, other in zip(halves, theirs, strict=True)
        )
        found[metric]["half_time"] = with_interval([one - other for one, other in ends])
        if metric in METRICS[:2]:
            reached = [(seconds_to_reach(a, metric, b[-1][metric]), b[-1]["seconds"]) for a, b in pairs]
            found[metric]["share_of_its_time"] = [ours and ours / theirs for ours, theirs in reached]
    return found


def without_paths(value):
    """The same without what lies where on this machine."""
    if isinstance(value, dict):
        return {name: without_paths(each) for name, each in value.items() if not str(each).startswith("/")}
    return [without_paths(each) for each in value] if isinstance(value, list) else value


def tables(runs: dict[str, list[dict]], comparisons: dict[str, dict], documents: dict) -> str:
    """What was measured, as Markdown: the sides at the end of their time, and ours less each of the others."""
    rows = []
    for side, done in runs.items():
        mean = {name: np.mean([one["curve"][-1][name] for one in done]) for name in done[0]["curve"][-1]}
        rate, speed = done[0]["cell"]["rate"], np.mean([one["tokens_per_second"] for one in done])
        clock = f"{mean['seconds'] / 60:.1f} / {mean['wall_seconds'] / 60:.1f}"
        row = [side, f"{done[0]['parameters']:,}", f"{rate:g}", clock, f"{speed:,.0f}"]
        row.append(f"{mean['tokens'] / documents['tokens']:.2f}")
        rows.append(row + [f"{mean[metric]:.3f}" if metric in mean else "–" for metric in METRICS])
    header = ["side", "parameters", "rate ×", "minutes: processor / clock", "tokens/s", "passes"]
    first = markdown_table(header + [metric.replace("_", " ") for metric in METRICS], rows)
    rows = []
    for side, found in comparisons.items():
        for metric, one in found.items():
            row = [f"less {side}", metric.replace("_", " ")]
            for name in ("equal_time", "equal_tokens", "half_time"):
                interval = one[name]["interval"]
                row.append(f"{one[name]['mean']:+.3f}" + (" [{:+.3f}, {:+.3f}]".format(*interval) if interval else ""))
            shares = ("never" if share is None else f"{share:.0%}" for share in one.get("share_of_its_time", ()))
            rows.append([*row, ", ".join(shares)])
    header = ["ours", "metric", "at equal time", "at equal tokens", "half, at the ends"]
    header.append("its final value reached in … of its time")
    return f"{first}\n\n{markdown_table(header, rows, 2)}"


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        cell = json.loads(sys.argv[2])
        write_json(Path(cell["scratch"]) / "result.json", train_one(cell))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpt_bert", help="checkout of ltgoslo/gpt-bert")
    parser.add_argument("--dual", help="checkout of ltgoslo/dual-language-models")
    parser.add_argument("--dataset", default="carolina_originality")
    parser.add_argument("--dataset_config", default="gold")
    parser.add_argument("--tokenizer", default="runs/study-cpu/tokenizer")
    parser.add_argument("--config", default="configs/quickstart.yaml", help="shape, batch, rate and schedule")
    parser.add_argument("--recipe", default=RECIPE, help="our other options of train.py")
    parser.add_argument("--sides", nargs="+", default=["ours", *PEERS, "stock"], help="ours first")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sweep_minutes", type=float, default=0, help="of each trial of a learning rate; 0: no sweep")
    parser.add_argument("--marks", type=int, default=10, help="points of a curve")
    parser.add_argument("--documents", type=int, default=300, help="held-out documents")
    parser.add_argument("--limit", type=int, default=500, help="minimal pairs; 0: none")
    parser.add_argument("--bf16", type=int, default=has_bfloat16())
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--runs", default="runs/peers", help="folder of the runs")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    for name in (side.partition("@")[0] for side in args.sides):
        if name in PEERS and not getattr(args, name):
            parser.error(f"{name} needs --{name} <checkout>")
    documents = write_documents(args)
    runs, sweep = run_all(args, documents)
    ours, *others = args.sides
    comparisons = {side: compare(runs[ours], runs[HALF], runs[side], args.minutes * 60) for side in others}
    print(tables(runs, comparisons, documents))
    for side, done in runs.items():
        print("\n".join(f"patched, {side}: {patch}" for patch in done[0]["patched"]))
    if args.output:
        made_by = {"versions": versions("torch", "transformers", "numpy"), "recipe": args.recipe, "bf16": args.bf16}
        found = {"made_by": made_by, "documents": documents, "sweep": sweep, "comparisons": comparisons, "runs": runs}
        write_json(args.output, without_paths(found))


if __name__ == "__main__":
    main()
