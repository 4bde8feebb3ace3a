"""What accelerate and transformers do otherwise than training here needs, each with what it works around."""

import contextlib
import dataclasses
import datetime
import functools

import torch
import torch.nn.functional as F
from accelerate import DistributedType, PartialState
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from flexqwen.cli import InputError
from flexqwen.remote import reason


def allow_fsdp_on_cpu() -> None:
    """Lets FSDP2 run on several CPU processes over gloo.

    accelerate (1.15, `AcceleratorState.__init__`) turns FSDP on only where it sees several GPUs; torch has it on CPUs.
    """
    if PartialState().distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def keep_losses_whole(accelerator) -> None:
    """Has FSDP2 leave losses in float32; accelerate (1.15) has them rounded to the dtype of the layers."""
    plugin = accelerator.state.fsdp_plugin
    if isinstance(plugin.mixed_precision_policy, MixedPrecisionPolicy):
        plugin.mixed_precision_policy = dataclasses.replace(plugin.mixed_precision_policy, output_dtype=torch.float32)


def compile_layers(model, training) -> None:
    """Compiles a model layer by layer; the rest and all names stay as they are.

    For every shape there is one graph, and another of the last layer, which leaves tokens out. accelerate would compile
    the whole, whose masks and losses break the graph and have other shapes at each step.
    """
    torch._dynamo.config.recompile_limit = 64  # a run has a few phases of rows and mixtures of modes
    for layer in model.model.layers:
        layer.compile(
            fullgraph=True, dynamic=False, backend=training.torch_compile_backend, mode=training.torch_compile_mode
        )
    training.torch_compile, training.torch_compile_backend, training.torch_compile_mode = False, None, None


def fuse_norms(model, rms_norm=F.rms_norm) -> None:
    """Has a model's norms made by torch's kernel for them, which passes over memory a fifth as often, forward and back.

    It wants weights of its input's dtype. Layers that are compiled need none; on a CPU torch has none (2.11 to 2.13).
    """
    for module in model.modules():
        if isinstance(module, Qwen3RMSNorm):
            module.forward = functools.partial(_normalize, module, rms_norm)


def _normalize(norm: Qwen3RMSNorm, rms_norm, states):
    return rms_norm(states, norm.weight.shape, norm.weight.to(states.dtype), norm.variance_epsilon)


@contextlib.contextmanager
def main_process_first(training):
    """The first process does the block, then all others do, which wait for it however long it takes.

    In the Trainer's own, they wait in the run's process group, which ends them after `ddp_timeout`.
    """
    if training.world_size == 1:
        yield
        return
    waiting = torch.distributed.new_group(backend="gloo", timeout=datetime.timedelta(days=30))
    try:
        if training.process_index:
            torch.distributed.barrier(waiting)
        yield
    finally:
        if not training.process_index:
            torch.distributed.barrier(waiting)


@contextlib.contextmanager
def refusals_named(what: str):
    """What the Trainer, accelerate or torch refuse in the block becomes an `InputError`: `what` cannot be made."""
    try:
        yield
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"{what} cannot be made: {reason(error)}") from error


@contextlib.contextmanager
def saved_as(model, cls: type):
    """Within it the model is of class `cls`, and its config asks for a cache.

    FSDP2 (torch 2.11 to 2.13, `fully_shard`) gives a model a class made on the fly, and `save_pretrained` would save
    that class's name and the source files of torch with it. The Trainer sets `use_cache` of the config to False.
    """
    wrapped, model.__class__ = model.__class__, cls
    use_cache, model.config.use_cache = model.config.use_cache, True
    try:
        yield
    finally:
        model.__class__, model.config.use_cache = wrapped, use_cache
