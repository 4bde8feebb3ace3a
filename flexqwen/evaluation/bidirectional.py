"""FlexQwen's bidirectional forward pass at a few positions of each row, as masked scoring wants it.

It runs the model's own modules, but not where it is of no use: the first layer's projections are made once for each
token of the batch and not for each of its places, and of the last layer only what is read. No row is padded, so no
mask is needed.
"""

import torch
import torch.nn.functional as F


def encode(model, input_ids: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Last hidden states of a `FlexQwenForCausalLM`, as with `is_causal=False`: `(rows, positions, hidden)`.

    `input_ids`, int64 `(rows, length)`, has a text a row; `columns`, int64 `(rows, positions)`, says where it is read.
    """
    base, read = model.model, (torch.arange(len(columns), device=columns.device)[:, None], columns)
    tokens, where = input_ids.unique(return_inverse=True)
    hidden = base.embed_tokens(tokens)
    cos, sin = base.rotary_emb(hidden, torch.arange(input_ids.shape[1], device=columns.device)[None])
    cos, sin = cos[0, :, None], sin[0, :, None]
    for layer in base.layers:
        attention, is_first, is_last = layer.self_attn, layer is base.layers[0], layer is base.layers[-1]
        shape = (-1, attention.head_dim)
        source = _normalize(hidden, layer.input_layernorm)
        key = _normalize(attention.k_proj(source).unflatten(-1, shape), attention.k_norm)
        value = attention.v_proj(source).unflatten(-1, shape)
        if is_first:
            hidden, key, value = hidden[where], key[where], value[where]
        if is_last:
            hidden = hidden[read]
            source = source[where[read]] if is_first else source[read]
        query = _normalize(attention.q_proj(source).unflatten(-1, shape), attention.q_norm)
        if is_last:
            query = _rotate(query, cos[columns], sin[columns])
        else:
            query = _rotate(query[where] if is_first else query, cos, sin)
        heads = (part.transpose(1, 2) for part in (query, _rotate(key, cos, sin), value))
        mixed = F.scaled_dot_product_attention(
            *heads, scale=attention.scaling, enable_gqa=attention.num_key_value_groups > 1
        )
        hidden += attention.o_proj(mixed.transpose(1, 2).flatten(2))
        mlp, source = layer.mlp, _normalize(hidden, layer.post_attention_layernorm)
        hidden += mlp.down_proj(mlp.act_fn(mlp.gate_proj(source)).mul_(mlp.up_proj(source)))
    return base.norm(hidden)


def _normalize(hidden: torch.Tensor, norm) -> torch.Tensor:
    """What the RMS norm gives, in fewer passes over memory."""
    size = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
    scale = torch.rsqrt(size.square() / hidden.shape[-1] + norm.variance_epsilon)
    return (hidden * scale).mul_(norm.weight)


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions, as `apply_rotary_pos_emb`: `heads` are `(rows, positions, heads, head_dim)`."""
    half = heads.shape[-1] // 2
    rotated = heads * cos
    rotated[..., :half].addcmul_(heads[..., half:], sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(heads[..., :half], sin[..., half:])
    return rotated
