"""Training on a CPU: layers that pass over memory less often, and memory that is kept from step to step."""

import ctypes
import functools
import os
import platform

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from flexqwen.evaluation.bidirectional import rotate
from modeling_flexqwen import compute_dtype

LONGEST = 512  # tokens of a row whose attention is kept whole; it grows with their square


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16 itself.

    On x86, oneDNN's own check is also true of AVX-512 without that, where it emulates it, slower than float32.
    """
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported()
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for the next step.

    Else it gives most of it back, and to be given it again, page by page, takes a fifth of a step's time. Who has set
    an option of the allocator has it as set.
    """
    libc, is_set = ctypes.CDLL(None), "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if hasattr(libc, "mallopt") and not is_set and not any(name.startswith("MALLOC_") for name in os.environ):
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes that may lie free at the end of the heap
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no tensor gets pages of its own, which would go back with it


def can_fuse(config) -> bool:
    """Whether `fuse_layers` knows what attention is asked for; on a CPU, `varlen` is `sdpa`."""
    return config._attn_implementation in ("sdpa", "varlen") and not config.attention_dropout


def fuse_layers(model) -> None:
    """Has a model's norms, rotations and attention made by the functions below; names and weights stay as they are.

    For mixed precision: what layers multiply is made in bfloat16 at once, where Qwen3 makes it in float32 and each
    product rounds it again.
    """
    for layer in model.model.layers:
        layer.self_attn.forward = functools.partial(_attend, layer.self_attn, layer.self_attn.forward)
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.forward = functools.partial(_normalize, norm)
    model.model.norm.forward = functools.partial(_normalize, model.model.norm)


def _normalize(norm: nn.Module, states):
    return _Norm.apply(states, norm.weight, norm.variance_epsilon, compute_dtype(states))


def _scale(states, eps: float):
    """What RMSNorm multiplies float32 states with, `(..., 1)`."""
    squares = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square_()
    return squares.div_(states.shape[-1]).add_(eps).rsqrt_()


def _norm_gradients(states, weight, scale, gradient):
    """Gradients of RMSNorm for its float32 states and its weight, of that of its output."""
    normal, weight = states * scale, weight.float()
    product = gradient * normal
    along = (product @ weight).div_(-len(weight)).unsqueeze(-1)
    grad_states = (gradient * weight).addcmul_(normal, along).mul_(scale)
    return grad_states, product.flatten(0, -2).sum(0)


class _Norm(Function):
    """RMSNorm of float32 states, in the dtype of the products that follow."""

    @staticmethod
    def forward(ctx, states, weight, eps, dtype):
        scale = _scale(states.float(), eps)
        ctx.save_for_backward(states, weight, scale)
        return (states * scale).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        states, weight, scale = ctx.saved_tensors
        grad_states, grad_weight = _norm_gradients(states.float(), weight, scale, gradient.float())
        return grad_states.to(states.dtype), grad_weight, None, None


class _NormAndRotation(Function):
    """RMSNorm of each head of a query or key, and its rotation: `(batch, sequence, heads, head_dim)` in the dtype of
    products, to `(batch, heads, sequence, head_dim)` in the same.
    """

    @staticmethod
    def forward(ctx, states, weight, cos, sin, eps):
        wide = states.to(torch.float32, copy=True)
        scale = _scale(wide, eps)
        ctx.save_for_backward(states, weight, scale, cos, sin)
        return rotate(wide.mul_(scale).mul_(weight), cos, sin).transpose(1, 2).to(states.dtype).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        states, weight, scale, cos, sin = ctx.saved_tensors
        gradient = rotate(gradient.transpose(1, 2).float().contiguous(), cos, -sin)  # back
        grad_states, grad_weight = _norm_gradients(states.float(), weight, scale, gradient)
        return grad_states.to(states.dtype), grad_weight, None, None, None


def _attend(attention, plain, hidden_states, position_embeddings, attention_mask, cache=None, **kwargs):
    """`Qwen3Attention.forward`, which is `plain`.

    Masked attention in bfloat16 is made of matrix products and kept whole for the backward pass: torch's kernel for
    CPUs, which keeps none of it, takes two and a half times as long.
    """
    cache = kwargs.pop("past_key_values", cache)  # its name until transformers 5.24
    if cache is not None:
        return plain(hidden_states, position_embeddings, attention_mask, cache, **kwargs)
    shape = (*hidden_states.shape[:-1], -1, attention.head_dim)
    cos, sin = (x.unsqueeze(2) for x in position_embeddings)
    query, key, value = (
        project(hidden_states).view(shape) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    norm, scaling = attention.q_norm, attention.scaling
    query = _NormAndRotation.apply(query, norm.weight, cos * scaling, sin * scaling, norm.variance_epsilon)
    key = _NormAndRotation.apply(key, attention.k_norm.weight, cos, sin, attention.k_norm.variance_epsilon)
    value = value.transpose(1, 2)
    if attention_mask is None or shape[1] > LONGEST:
        output, _ = sdpa_attention_forward(attention, query, key, value, attention_mask, **{**kwargs, "scaling": 1.0})
        return attention.o_proj(output.flatten(2)), None
    groups = attention.num_key_value_groups
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3)
    bias = torch.zeros_like(attention_mask, dtype=scores.dtype)
    scores += bias.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
    with torch.autocast("cpu", enabled=False):  # which would have the softmax in float32: its sums are, anyway
        shares = scores.softmax(-1)
    return attention.o_proj((shares @ value).transpose(1, 2).flatten(2)), None
