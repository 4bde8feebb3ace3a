"""FlexQwen's bidirectional forward pass at a few positions of each row, as masked scoring wants it.

It runs the model's own modules, but not where it is of no use: the first layer's projections are made once for each
token of a batch and not for each of its places, and of the last layer only what is read, for many batches at a time.
No row is padded, so no mask is needed.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn


class Encoder:
    """A `FlexQwenForCausalLM`, run as with `is_causal=False`.

    Its weights are read once, when this is made; on a CPU those of its linear layers are then in memory twice.
    """

    def __init__(self, model):
        self.base = model.model
        self.linear = {part: _pack(part) for part in self.base.modules()}
        self.head = _pack(model.lm_head)

    def find_logits(self, texts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """The head's `(positions, vocabulary)`, for all positions of the first text's rows, then of the next one's.

        A text is `input_ids`, int64 `(rows, length)`, and `columns`, int64 `(rows, positions)`: where they are read.
        Rows of a text that are equal must have equal columns.
        """
        hidden, mixed = map(torch.cat, zip(*[self._run(*text) for text in texts], strict=True))
        return self.head(self.base.norm(self._finish(self.base.layers[-1], hidden, mixed)))

    def _run(self, input_ids: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the last layer is given and what its heads find, both `(rows * positions, size)`."""
        base, linear = self.base, self.linear
        # Sentences that differ only where they are masked are one row.
        (input_ids, back), given = input_ids.unique(dim=0, return_inverse=True), columns
        columns = torch.empty_like(given)
        columns[back] = given
        columns = columns[: len(input_ids)]
        read = torch.arange(len(columns), device=columns.device)[:, None], columns
        tokens, where = input_ids.unique(return_inverse=True)
        hidden = base.embed_tokens(tokens)
        cos, sin = base.rotary_emb(hidden, torch.arange(input_ids.shape[1], device=columns.device)[None])
        cos, sin = cos[0, :, None], sin[0, :, None]
        for layer in base.layers:
            attention, is_first, is_last = layer.self_attn, layer is base.layers[0], layer is base.layers[-1]
            shape = (-1, attention.head_dim)
            source = _normalize(hidden, layer.input_layernorm)
            key = _normalize(linear[attention.k_proj](source).unflatten(-1, shape), attention.k_norm)
            value = linear[attention.v_proj](source).unflatten(-1, shape)
            if is_first:
                hidden, key, value = hidden[where], key[where], value[where]
            if is_last:
                hidden = hidden[read]
                source = source[where[read]] if is_first else source[read]
            query = _normalize(linear[attention.q_proj](source).unflatten(-1, shape), attention.q_norm)
            if is_last:
                query = rotate(query, cos[columns], sin[columns])
            else:
                query = rotate(query[where] if is_first else query, cos, sin)
            heads = (part.transpose(1, 2) for part in (query, rotate(key, cos, sin), value))
            mixed = F.scaled_dot_product_attention(
                *heads, scale=attention.scaling, enable_gqa=attention.num_key_value_groups > 1
            )
            mixed = mixed.transpose(1, 2).flatten(2)
            if is_last:
                return hidden[back].flatten(0, 1), mixed[back].flatten(0, 1)
            hidden = self._finish(layer, hidden, mixed)

    def _finish(self, layer, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """The rest of a layer, after its heads."""
        hidden += self.linear[layer.self_attn.o_proj](mixed)
        mlp, source = layer.mlp, _normalize(hidden, layer.post_attention_layernorm)
        gate = mlp.act_fn(self.linear[mlp.gate_proj](source)).mul_(self.linear[mlp.up_proj](source))
        return hidden.add_(self.linear[mlp.down_proj](gate))


def _pack(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The module; of a linear one in float32 on a CPU what it does, its weights once for all as oneDNN reads them.

    The operators are those that `torch.compile` uses for batches of any size, and none is public
    (torch/_inductor/fx_passes/mkldnn_fusion.py).
    """
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:  # of PEFT, quantised, …
        return module
    weight, operators = module.weight.detach(), torch.ops.mkldnn
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return module
    packed = operators._reorder_linear_weight(weight)
    return lambda hidden: operators._linear_pointwise(hidden, packed, module.bias, "none", [], "")


def _normalize(hidden: torch.Tensor, norm) -> torch.Tensor:
    """What the RMS norm gives, in fewer passes over memory."""
    size = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
    scale = torch.rsqrt(size.square() / hidden.shape[-1] + norm.variance_epsilon)
    return (hidden * scale).mul_(norm.weight)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions, as `apply_rotary_pos_emb`: `heads` are `(rows, positions, heads, head_dim)`."""
    half = heads.shape[-1] // 2
    rotated = heads * cos
    rotated[..., :half].addcmul_(heads[..., half:], sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(heads[..., :half], sin[..., half:])
    return rotated
