"""FlexQwen: a Qwen3 that attends causally, bidirectionally, or bidirectionally within a prefix, chosen per call.

In causal mode every class runs Qwen3's own forward pass. The other modes change the attention mask and nothing else, so
that parameters, their names and their initialisation are Qwen3's.
"""

import copy
import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    and_masks,
    create_bidirectional_mask,
    create_causal_mask,
    find_packed_sequence_indices,
    sdpa_mask,
)
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.utils import can_return_tuple, logging

try:
    from .configuration_flexqwen import FlexQwenConfig
except ImportError:  # this file lies at the root of a checkout and is imported by its bare name
    from configuration_flexqwen import FlexQwenConfig
try:
    from torch.nn.attention.varlen import varlen_attn

    VARLEN_GROUPS = "enable_gqa" in varlen_attn.__kwdefaults__  # torch 2.13 has it
except ImportError:
    varlen_attn, VARLEN_GROUPS = None, False

logger = logging.get_logger(__name__)

IGNORE = -100  # the label that PyTorch's cross entropy and every transformers collator leave out
VARLEN = {"cuda": (torch.float16, torch.bfloat16)}  # what torch's variable-length kernel takes; else "varlen" is sdpa
CHUNKS, CHUNK_TOKENS = 8, 256  # the loss takes an eighth of the labelled tokens at a time, but at least 256


def compute_dtype(states):
    """The dtype in which to call what autocast does not know."""
    device = states.device.type
    is_autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_autocast else states.dtype


def losses_and_gradient(logits, target, token_weights):
    """Cross entropy of each token and its weighted gradient, which is made in place of the logits.

    Args:
        logits: `(tokens, vocabulary)`. Half precision stays as it is, to be read and written less; sums are float32.
        target, token_weights: int64 and float32 `(tokens, 1)`.

    Returns:
        losses: float32 `(tokens,)`, unweighted.
        gradient, scale: `(tokens, vocabulary)` and float32 `(tokens, 1)`. Their product is the gradient; it is never
            made, since to scale what the gradient is multiplied with moves fewer bytes.
    """
    if logits.dtype == torch.float32:
        log_normalizer = logits.logsumexp(-1, keepdim=True)
        losses = log_normalizer - logits.gather(-1, target)
        logits.sub_(log_normalizer).exp_()
        logits.scatter_add_(-1, target, torch.full_like(target, -1, dtype=logits.dtype))
        return losses.squeeze(-1), logits, token_weights
    chosen, highest = logits.gather(-1, target).float(), logits.amax(-1, keepdim=True)
    total = logits.sub_(highest).exp_().sum(-1, keepdim=True, dtype=torch.float32)
    losses = total.log() + (highest.float() - chosen)
    logits.scatter_(-1, target, (torch.expm1(-losses) * total).to(logits.dtype))
    return losses.squeeze(-1), logits, token_weights / total


class _LabelledCrossEntropy(torch.autograd.Function):
    """Weighted cross entropy of `hidden @ weight.T`, a chunk of tokens at a time.

    Both gradients are made in the forward pass, where a chunk's logits already lie in memory, so that logits are
    computed once and never kept (the method of Liger Kernel's fused linear cross entropy, arXiv 2410.10989, section 3).
    """

    @staticmethod
    def forward(ctx, hidden, weight, labels, token_weights):
        dtype = compute_dtype(hidden)
        matrix = weight.to(dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = None
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        size = max(CHUNK_TOKENS, math.ceil(len(labels) / CHUNKS))
        for start in range(0, max(len(labels), 1), size):
            part = slice(start, start + size)
            states, target = hidden[part].to(dtype), labels[part, None]
            losses[part], grad, scale = losses_and_gradient(states @ matrix.t(), target, token_weights[part, None])
            if needs_hidden:
                grad_hidden[part] = (grad @ matrix) * scale
            if needs_weight:
                states = (states * scale).to(dtype)
                if grad_weight is None:
                    grad_weight = (grad.t() @ states).to(weight.dtype)
                elif dtype == weight.dtype:
                    grad_weight.addmm_(grad.t(), states)
                else:
                    grad_weight += grad.t() @ states
        ctx.grads = (grad_hidden, grad_weight)
        ctx.mark_non_differentiable(losses)
        return (losses * token_weights).sum(), losses

    @staticmethod
    def backward(ctx, grad_loss, _):
        if ctx.grads is None:
            raise RuntimeError("this loss can be differentiated once: its gradients are made in the forward pass")
        grads, ctx.grads = ctx.grads, None  # scaled in place and let go: the head's is as large as its matrix
        return *(None if grad is None else grad.mul_(grad_loss) for grad in grads), None, None


def check_ids(name: str, ids, vocab_size: int) -> None:
    """Raises ValueError for an id beyond the vocabulary; on the CPU only, since a GPU would have to wait for it."""
    can_look = ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling()
    if can_look and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(
            f"{name} must lie between 0 and {vocab_size - 1}, the vocabulary's last id; "
            f"got {int(ids.min())} to {int(ids.max())}"
        )


def is_plain_linear(head: nn.Module) -> bool:
    """Whether a head is its matrix and nothing more: neither adapted (PEFT) nor quantised (torchao)."""
    return type(head) is nn.Linear and type(head.weight) is nn.Parameter and head.bias is None


def find_labels(labels, shift):
    """Where labels are: int64 `(labels,)`, places in the flattened `(batch, sequence)`.

    `shift`, bool `(batch,)`: a row's label at position t is predicted from the output at t-1 where True, at t where
    False. A shifted row has nothing to predict position 0 from: a label there is left out, as in Qwen3.
    """
    can_predict = F.pad(~shift[:, None], (0, labels.shape[1] - 1), value=True)
    return ((labels != IGNORE) & can_predict).flatten().nonzero().squeeze(-1)


def labelled_loss(states, head, labels, target_positions, num_items_in_batch=None, row_weights=None):
    """Cross entropy at the labelled positions only; logits of the other positions are never computed.

    Args:
        states: `(labels, hidden)`, the last hidden states that predict the labels.
        head: the module that makes logits of them; a plain linear one runs fused with the loss.
        labels: int64 `(batch, sequence)`, the token to be predicted *at* each position, -100 where there is none.
        target_positions: int64 `(labels,)`, what `find_labels` returns.
        num_items_in_batch: what the summed loss is divided by; by default the number of labels.
        row_weights: float `(batch,)`, weight of every label of a row; 1 by default.

    Returns:
        loss: float32 scalar, in nats. 0 (with a gradient of 0) where nothing is labelled.
        row_losses: float32 `(batch,)`, the unweighted summed loss of each row in nats, without gradient.
        row_labels: int64 `(batch,)`, how many labels each row has.
    """
    rows = target_positions // labels.shape[1]
    token_weights = torch.ones(len(rows), device=labels.device) if row_weights is None else row_weights.float()[rows]
    targets = labels.flatten()[target_positions]
    if is_plain_linear(head):
        check_ids("labels", targets, len(head.weight))
        # Under no_grad autograd's functions are still told that a parameter wants a gradient.
        weight = head.weight if torch.is_grad_enabled() else head.weight.detach()
        total, losses = _LabelledCrossEntropy.apply(states, weight, targets, token_weights)
    else:
        losses = F.cross_entropy(head(states).float(), targets, reduction="none")
        total, losses = (losses * token_weights).sum(), losses.detach()
    row_losses = torch.zeros(len(labels), device=labels.device).index_add_(0, rows, losses)
    row_labels = labels.new_zeros(len(labels)).index_add_(0, rows, torch.ones_like(rows))
    return total / (max(len(rows), 1) if num_items_in_batch is None else num_items_in_batch), row_losses, row_labels


@dataclass
class FlexQwenCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast`, and, where there are labels, what each row lost.

    Args:
        row_losses: float32 `(batch,)`, the unweighted summed loss of each row in nats, without gradient.
        row_labels: int64 `(batch,)`, how many labels each row has.
    """

    row_losses: torch.FloatTensor | None = None
    row_labels: torch.LongTensor | None = None


def varlen_attention(module, query, key, value, attention_mask, scaling=None, segments=None, **kwargs):
    """Attention over packed documents by torch's own variable-length kernel (CUDA): no mask is ever built.

    Args:
        query, key, value: `(batch, heads, sequence, head_dim)`.
        segments: what `packed_segments` returns; where it is None, this is sdpa.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    length, rows = query.shape[2], [len(starts) for starts, _ in segments]
    groups, grouped = module.num_key_value_groups, {}
    if groups > 1 and VARLEN_GROUPS:
        grouped = {"enable_gqa": True}
    elif groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    # Of the three, the value alone always has the dtype that autocast asks for.
    parts = (x.transpose(1, 2).to(value.dtype).split(rows) for x in (query, key, value))
    outputs = []
    for (starts, is_causal), *part in zip(segments, *parts, strict=True):
        limits, window = (starts.flatten(), starts.flatten(), length, length), (-1, 0 if is_causal else -1)
        q, k, v = (x.flatten(0, 1) for x in part)
        output = varlen_attn(q, k, v, *limits, scale=scaling, window_size=window, **grouped)
        outputs.append(output.unflatten(0, (len(starts), length)))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs), None


def packed_segments(documents, is_causal):
    """The documents of packed rows as variable-length kernels want them. On a GPU, the host waits for it.

    Args:
        documents: int64 `(batch, sequence)`, which document of its row each token belongs to.
        is_causal: bool, or bool tensor `(batch,)`.

    Returns:
        A list of (starts, whether causal) for each run of rows of one mode. `starts`, int32 `(rows, documents + 1)`,
        are the places in the run's flattened rows where the documents begin; a row with fewer than others has its end
        there several times, which makes documents of no tokens.
    """
    batch_size, length = documents.shape
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    places = torch.arange(length, device=documents.device).expand(batch_size, -1).masked_fill(~begins, length)
    most = int(begins.sum(-1).max())
    starts = F.pad(places.sort(-1).values[:, :most], (0, 1), value=length)
    starts += length * torch.arange(batch_size, device=starts.device)[:, None]
    modes = [is_causal] * batch_size if isinstance(is_causal, bool) else is_causal.tolist()
    segments, first = [], 0
    for mode, same in itertools.groupby(modes):
        rows = len(list(same))
        segments.append(((starts[first : first + rows] - length * first).int(), mode))
        first += rows
    return segments


def document_numbers(position_ids):
    """int64 `(batch, sequence)`, which document of its row each token belongs to; positions restart with each."""
    return (position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1).cumsum(-1)


def packed_documents(position_ids, attention_mask):
    """int64 `(batch or 1, sequence)`, which document of its row each token belongs to; None if no row is packed."""
    documents = find_packed_sequence_indices(position_ids)
    if documents is not None and attention_mask is not None and not torch.compiler.is_compiling():
        real = attention_mask.bool()  # padding restarts positions too, and is no document
        last = documents.masked_fill(~real, -1).amax(-1)
        first = documents.masked_fill(~real, documents.shape[-1]).amin(-1)
        documents = documents if (last > first).any() else None
    return documents


def prefix_end(prefix_length, attention_mask):
    """int64 `(batch,)`, the column at which each row's prefix ends; it begins after the padding of a 2D mask."""
    is_2d = attention_mask is not None and not isinstance(attention_mask, dict) and attention_mask.dim() == 2
    return prefix_length + attention_mask.long().argmax(-1) if is_2d else prefix_length


def mark_dynamic(tensor, *dimensions: int) -> None:
    """Layers that are compiled on their own have one graph for any size of these; a larger graph finds out itself."""
    if not torch.compiler.is_compiling():
        torch._dynamo.maybe_mark_dynamic(tensor, dimensions)


class FlexQwenLastLayer(Qwen3DecoderLayer):
    """Qwen3's layer, but its MLP can be left to the tokens from which something is predicted."""

    def forward(self, hidden_states, kept_positions=None, **kwargs):
        """`kept_positions` are places in the flattened `(batch, sequence)`; only these are returned, in this order."""
        if kept_positions is None:
            return super().forward(hidden_states, **kwargs)
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states, attended = (x.flatten(0, 1).index_select(0, kept_positions) for x in (hidden_states, attended))
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class FlexQwenModel(Qwen3Model):
    """Qwen3's decoder with the attention mode chosen per call."""

    config_class = FlexQwenConfig
    config: FlexQwenConfig
    _auto_class = "AutoModel"
    default_is_causal = True  # encoder heads set False on their own base model
    _no_split_modules = ("Qwen3DecoderLayer", "FlexQwenLastLayer")

    def __init__(self, config: FlexQwenConfig):
        super().__init__(config)
        for layer in self.layers[-1:]:
            layer.__class__ = FlexQwenLastLayer
        for layer in self.layers:  # where vLLM, which attends in its own way, looks for the mode
            layer.self_attn.is_causal = getattr(config, "is_causal", True)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        is_causal: bool | torch.BoolTensor | None = None,
        prefix_length: torch.LongTensor | None = None,
        segments: list[tuple[torch.IntTensor, bool]] | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Qwen3's forward pass, and:

        Args:
            is_causal (`bool` or bool tensor of shape `(batch,)`, *optional*):
                True: each token attends to itself and those before it. False: to the whole row. A tensor chooses for
                each row. By default `config.is_causal`, and where that is absent, the class's own default.
            prefix_length (int64 `(batch,)`, *optional*):
                The first so many tokens of each row, padding not counted, also attend to each other in both
                directions; the rest is causal (prefix language modelling, arXiv 1910.10683, section 3.2.1). `generate`
                wants the padding of a batch on the left (`padding_side="left"`): it writes on after the last column.
            position_ids (int64 `(batch, sequence)`, *optional*):
                Where they restart, a new document begins: in every mode, tokens attend only within their document.
            segments (what `packed_segments` returns, *optional*):
                The same, made ahead of `position_ids` and `is_causal`, so that a GPU need not be waited for.

        Raises:
            ValueError: ids beyond the vocabulary (looked for on the CPU only: a GPU would have to wait); a cache
                together with bidirectional attention, a mode for each row or packed rows; a prefix of a packed row,
                longer than its row or partly in the cache.
        """
        past_key_values = kwargs.pop("cache", past_key_values)  # the name that transformers 5.24 gave it
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if input_ids is not None:
            check_ids("input_ids", input_ids, self.config.vocab_size)
        batch_size, length = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        is_causal = self.attention_is_causal(is_causal, prefix_length)
        is_tensor = isinstance(is_causal, torch.Tensor)
        fits = is_tensor and is_causal.shape == (batch_size,) and is_causal.dtype == torch.bool
        if not (fits or isinstance(is_causal, bool)):
            found = f"{is_causal.dtype} of shape {tuple(is_causal.shape)}" if is_tensor else repr(is_causal)
            raise ValueError(f"is_causal must be a bool or a bool tensor of shape ({batch_size},), got {found}")
        is_prepared = isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.dim() == 4)
        # A compiled graph cannot look whether positions restart; who asks it for a cache or a prefix has not packed.
        cannot_be_packed = torch.compiler.is_compiling() and (use_cache or prefix_length is not None)
        documents = end = None
        if segments is not None:
            if position_ids.device.type != "cpu" or any(starts.shape[1] > 2 for starts, _ in segments):
                documents = document_numbers(position_ids)
        elif position_ids is not None and past_key_values is None and not is_prepared and not cannot_be_packed:
            documents = packed_documents(position_ids, attention_mask)
        if is_causal is not True or documents is not None:
            if past_key_values is not None or use_cache:
                raise ValueError(
                    "a cache holds one document a row, computed left to right: with is_causal=False, a mode for each "
                    "row, or position_ids that restart, pass use_cache=False and no past_key_values"
                )
            use_cache = False  # with a cache, Qwen3 would not look for packed rows
        if prefix_length is not None:
            if is_causal is not True or documents is not None:
                raise ValueError("prefix_length goes with causal attention and rows of one document each")
            cached = 0 if past_key_values is None else int(past_key_values.get_seq_length())
            end = self.checked_prefix_end(prefix_length, attention_mask, batch_size, cached, length)
        self.warn_past_the_last_position(length, past_key_values)
        is_flexible = is_causal is not True or end is not None
        if (is_flexible or documents is not None) and not is_prepared:
            if inputs_embeds is None:
                inputs_embeds, input_ids = self.embed_tokens(input_ids), None
            attention_mask, for_backend = self.backend_arguments(
                inputs_embeds, attention_mask, past_key_values, documents, is_causal, end, segments
            )
            kwargs.update(for_backend)
        if not (is_flexible or isinstance(attention_mask, dict) or getattr(self.config, "is_causal", True)):
            # transformers makes the mask that the config asks for; this call asks for another.
            if inputs_embeds is None:
                inputs_embeds, input_ids = self.embed_tokens(input_ids), None
            causal = copy.copy(self.config)
            causal.is_causal = True
            mask = create_causal_mask(causal, inputs_embeds, attention_mask, past_key_values, position_ids)
            attention_mask = {"full_attention": mask}
        use_cache = self.config.use_cache if use_cache is None else use_cache
        # Not by its outermost decorator, which would write is_causal into the config while other threads read it there.
        return Qwen3Model.forward.__wrapped__(
            self,
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache=use_cache and not (self.gradient_checkpointing and self.training),
            is_causal=not is_flexible,
            **kwargs,
        )

    def attention_is_causal(self, is_causal, prefix_length=None) -> bool | torch.BoolTensor:
        """The mode in force: the call's, else causal about a prefix, else the config's, else the class's own."""
        if is_causal is None:
            is_causal = getattr(self.config, "is_causal", None) if prefix_length is None else True
        return self.default_is_causal if is_causal is None else is_causal

    def warn_past_the_last_position(self, length: int, past_key_values) -> None:
        """Says once that a row is longer than the model has positions: what it computes there means little."""
        end = length + (0 if past_key_values is None else past_key_values.get_seq_length())
        last = self.config.max_position_embeddings
        if not torch.compiler.is_compiling() and isinstance(end, int) and end > last:
            logger.warning_once(f"rows of {end} tokens and more are longer than the {last} positions of this model")

    @staticmethod
    def checked_prefix_end(prefix_length, attention_mask, batch_size: int, cached: int, length: int):
        """The column at which each row's prefix ends, int64 `(batch,)`; None where the cache holds every prefix."""
        is_tensor = isinstance(prefix_length, torch.Tensor)
        if not is_tensor or prefix_length.shape != (batch_size,) or prefix_length.is_floating_point():
            found = f"{prefix_length.dtype} of shape {tuple(prefix_length.shape)}" if is_tensor else prefix_length
            raise ValueError(f"prefix_length must be a tensor of integers of shape ({batch_size},), got {found}")
        end = prefix_end(prefix_length, attention_mask)
        if not torch.compiler.is_compiling():
            if prefix_length.min() < 0 or end.max() > cached + length:
                raise ValueError(
                    f"prefix_length {prefix_length.tolist()} must lie between 0 and the row's {cached + length} tokens"
                )
            if cached and end.max() > cached:
                raise ValueError(
                    f"a prefix must be passed whole: the cache holds {cached} tokens, the prefix ends at {end.tolist()}"
                )
        return None if cached else end

    def backend_arguments(
        self, inputs_embeds, attention_mask, past_key_values, documents, is_causal, end, segments=None
    ):
        """How the attention implementation is told what attends to what: the mask, and keyword arguments."""
        name, device = self.config._attn_implementation, inputs_embeds.device
        batch_size, length = inputs_embeds.shape[:2]
        documents = None if documents is None else documents.expand(batch_size, -1)
        drops_out = self.training and self.config.attention_dropout > 0  # which the kernel cannot
        can_vary = name == "varlen" and not drops_out and attention_mask is None and end is None
        if can_vary and compute_dtype(inputs_embeds) in VARLEN.get(device.type, ()):
            if segments is None:
                if documents is None:
                    documents = torch.zeros((batch_size, length), dtype=torch.long, device=device)
                segments = packed_segments(documents, is_causal)
            for starts, _ in segments:
                mark_dynamic(starts, 0, 1)  # the numbers of rows and of documents
            return {"full_attention": None}, {"segments": segments}
        if "flash" in name:
            if isinstance(is_causal, torch.Tensor) or end is not None:
                raise ValueError(f"{name} cannot mix modes in a call: use varlen (CUDA), flex_attention or sdpa")
            if documents is None:
                return attention_mask, {}
            if attention_mask is not None and not attention_mask.all():
                raise ValueError(f"{name} takes packed rows or padded ones, not both: use flex_attention or sdpa")
            ((starts, _),) = packed_segments(documents, is_causal) if segments is None else segments
            starts, lengths = starts.flatten(), {"max_length_q": length, "max_length_k": length}
            return None, {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, **lengths}
        if is_causal is True and end is None and attention_mask is None and segments is None:
            return None, {}  # Qwen3 itself keeps packed documents apart
        mask = self.flexible_mask(inputs_embeds, attention_mask, past_key_values, documents, is_causal, end)
        return {"full_attention": mask}, {}

    def flexible_mask(self, inputs_embeds, attention_mask, past_key_values, documents, is_causal, end):
        """One mask for all layers, in the attention implementation's own format (None where none is needed).

        transformers keeps packed documents apart only in causal mode and with no 2D mask, so it is done here.
        """
        if self.has_sliding_layers:
            raise ValueError("sliding-window layers attend causally only; set use_sliding_window=False")
        batch_size, length = inputs_embeds.shape[:2]
        rules = []
        if documents is not None:
            rules.append(lambda b, h, q, kv: documents[b, q] == documents[b, kv])
        if is_causal is not False:
            # The last column that each token attends to. A table, since inductor compiles a comparison with it but not
            # one with `end[b]` (torch 2.13, CPU).
            reach = torch.arange(length, device=inputs_embeds.device).expand(batch_size, -1)
            if end is not None:
                reach = reach.maximum(end[:, None] - 1)
            elif isinstance(is_causal, torch.Tensor):
                reach = torch.where(is_causal[:, None], reach, length - 1)
            rules.append(lambda b, h, q, kv: kv <= reach[b, q])
        return create_bidirectional_mask(
            self.config,
            inputs_embeds,
            attention_mask,
            past_key_values=past_key_values,
            and_mask_function=and_masks(*rules) if rules else None,
        )


class FlexQwenForCausalLM(Qwen3ForCausalLM):
    """Qwen3ForCausalLM on a `FlexQwenModel`: generation, and both training objectives through one head and one loss."""

    config_class = FlexQwenConfig
    config: FlexQwenConfig
    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config: FlexQwenConfig):
        super(Qwen3ForCausalLM, self).__init__(config)  # Qwen3ForCausalLM's own would build a Qwen3Model first
        self.model = FlexQwenModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        is_causal: bool | torch.BoolTensor | None = None,
        prefix_length: torch.LongTensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        row_weights: torch.FloatTensor | None = None,
        target_positions: torch.LongTensor | None = None,
        **kwargs,
    ) -> FlexQwenCausalLMOutput:
        """Qwen3ForCausalLM's forward pass, and:

        Args:
            labels (int64 `(batch, sequence)`, *optional*):
                The token at each position that is to be predicted, -100 elsewhere; the shift is made here. A causal
                row's label at t is predicted from the output at t-1, and so is a masked row's, unless
                `config.masked_prediction` is `"in_place"`. Labels within a prefix are left out. In training mode the
                head and the last layer's MLP run only where there is a label and `logits` is None; in evaluation mode
                the full logits are returned as well.
            is_causal, prefix_length: see `FlexQwenModel.forward`.
            num_items_in_batch: what the summed loss is divided by; by default the number of labels.
            row_weights (float `(batch,)`, *optional*): weight of every label of a row in the loss.
            target_positions (int64 `(labels,)`, *optional*): where they are, as `find_labels` returns it, so that a GPU
                need not be waited for. `segments` of `FlexQwenModel.forward` does as much.
        """
        if labels is not None:
            shape = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
            if labels.shape != shape:
                raise ValueError(f"labels must have shape {tuple(shape)}, got {tuple(labels.shape)}")
            if prefix_length is not None:  # what the prefix's own tokens see includes what they would predict
                columns = torch.arange(labels.shape[1], device=labels.device)
                labels = labels.masked_fill(columns < prefix_end(prefix_length, attention_mask)[:, None], IGNORE)
                target_positions = None
            shift = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
            if self.config.masked_prediction == "in_place":
                shift = shift & self.model.attention_is_causal(is_causal, prefix_length)
            if target_positions is None:
                target_positions = find_labels(labels, shift)
            kept_positions = target_positions - shift[target_positions // labels.shape[1]].long()
        past_key_values = kwargs.pop("cache", past_key_values)
        depth = min(self.config.num_hidden_layers, len(self.model.layers))
        can_keep_few = depth > 0 and isinstance(self.model.layers[depth - 1], FlexQwenLastLayer)
        asks_for_all = not self.training or kwargs.get("output_hidden_states") or self.config.output_hidden_states
        if keeps_few := labels is not None and can_keep_few and not asks_for_all:
            mark_dynamic(kept_positions, 0)
            kwargs["kept_positions"] = kept_positions
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            is_causal=is_causal,
            prefix_length=prefix_length,
            **{**kwargs, "return_dict": True},
        )
        hidden_states = outputs.last_hidden_state
        result = FlexQwenCausalLMOutput(
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        if labels is not None:
            states = hidden_states if keeps_few else hidden_states.flatten(0, 1).index_select(0, kept_positions)
            result.loss, result.row_losses, result.row_labels = labelled_loss(
                states, self.lm_head, labels, target_positions, num_items_in_batch, row_weights
            )
        if labels is None or not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            result.logits = self.lm_head(hidden_states[:, kept, :])
        return result

    def prepare_inputs_for_generation(self, input_ids, *args, attention_mask=None, prefix_length=None, **kwargs):
        """For a static cache `generate` prepares the mask, and would prepare a causal one for the prefix too."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, *args, attention_mask=attention_mask, prefix_length=prefix_length, **kwargs
        )
        cache = inputs.get("cache", inputs.get("past_key_values"))
        if prefix_length is not None and cache is not None and cache.get_seq_length() == 0:
            inputs["attention_mask"] = attention_mask
        return inputs


class FlexQwenForMaskedLM(FlexQwenForCausalLM):
    """Fills masks. Bidirectional by default: `logits[:, t]` are of the token at t, whatever `masked_prediction` is.

    With `"next_token"` prediction, position 0 has no output before it; its logits are those at 0 itself, and mean
    nothing. That is where BOS stands, which is never masked. A label there is left out.
    """

    _auto_class = "AutoModelForMaskedLM"

    def __init__(self, config: FlexQwenConfig):
        if config.mask_token_id is None:
            raise ValueError("masked prediction needs config.mask_token_id, the id of the tokenizer's mask token")
        super().__init__(config)
        self.model.default_is_causal = False

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> MaskedLMOutput:
        """
        Args:
            labels (int64 `(batch, sequence)`, *optional*): the token behind each mask, -100 elsewhere. In training
                mode the head runs only where there is a label and `logits` is None.
            kwargs: what `FlexQwenForCausalLM` takes; `is_causal` is False by default.

        Returns:
            `MaskedLMOutput` with `logits` of shape `(batch, sequence, vocabulary)`, aligned with the labels.
        """
        kwargs = {"use_cache": False, **kwargs, "return_dict": True}
        outputs = super().forward(input_ids, attention_mask, labels=labels, **kwargs)
        logits = outputs.logits
        if logits is not None:
            if self.config.masked_prediction == "next_token":
                logits = logits[:, (torch.arange(logits.shape[1], device=logits.device) - 1).clamp(min=0)]
            logits = logits[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]
        return MaskedLMOutput(outputs.loss, logits, outputs.hidden_states, outputs.attentions)

    @torch.no_grad()
    def fill(self, input_ids, attention_mask=None, left_to_right: bool = False, num_beams: int = 1):
        """Fills all masks of each row, one after the other, each with what was filled before it in view.

        Args:
            input_ids: int64 `(batch, sequence)`.
            left_to_right: fill the masks in their order; by default the surest first.
            num_beams: how many fillings of a row are followed, the likeliest so far; the likeliest of all is returned.

        Returns:
            int64 `(batch, sequence)`: `input_ids` with tokens other than pad, BOS, EOS and the mask in place of masks.
        """
        config, filled = self.config, input_ids.clone()
        special = {config.mask_token_id, config.pad_token_id, config.bos_token_id, config.eos_token_id} - {None}
        for row, ids in enumerate(input_ids):
            beams, scores = ids[None], torch.zeros(1, device=ids.device)
            mask = None if attention_mask is None else attention_mask[row]
            for _ in range(int((ids == config.mask_token_id).sum())):
                logits = self(beams, None if mask is None else mask.expand(len(beams), -1)).logits.float()
                logits[..., list(special)] = -torch.inf
                nats, is_masked = logits.log_softmax(-1), beams == config.mask_token_id
                surest = nats.amax(-1).masked_fill(~is_masked, -torch.inf)
                place = (is_masked.int() if left_to_right else surest).argmax(-1)
                totals = scores[:, None] + nats[torch.arange(len(beams)), place]
                scores, found = totals.flatten().topk(min(num_beams, totals.numel()))
                beam, token = found // totals.shape[1], found % totals.shape[1]
                beams = beams[beam].scatter(1, place[beam, None], token[:, None])
            filled[row] = beams[scores.argmax()]
        return filled


class _Encoder:
    """Makes the base model under a head bidirectional by default."""

    config_class = FlexQwenConfig
    config: FlexQwenConfig

    def __init__(self, config: FlexQwenConfig):
        # The generic heads build their base model with AutoModel, which must know this very class of config: remote
        # code that lies in a local folder is imported once for the config alone and once more with the model.
        AutoModel.register(type(config), FlexQwenModel, exist_ok=True)
        super().__init__(config)
        self.model.default_is_causal = False


class FlexQwenForSequenceClassification(_Encoder, GenericForSequenceClassification, Qwen3PreTrainedModel):
    """Classifies rows, or gives each a number (`config.problem_type`), from the mean of its tokens' hidden states."""

    _auto_class = "AutoModelForSequenceClassification"

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        is_causal: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """
        Args:
            attention_mask (`(batch, sequence)`, *optional*): 1 where a token is real; padding, on either side, is
                neither attended to nor averaged. By default, real is what is not `config.pad_token_id`.
            labels: int64 `(batch,)` for one label of several, float `(batch, num_labels)` for several at a time, float
                `(batch,)` for regression.
        """
        if attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            is_causal=is_causal,
            use_cache=False,
            **{**kwargs, "return_dict": True},
        )
        states = outputs.last_hidden_state
        real = (
            torch.ones_like(states[..., :1]) if attention_mask is None else attention_mask[..., None].to(states.dtype)
        )
        logits = self.score((states * real).sum(1) / real.sum(1).clamp(min=1))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class FlexQwenForTokenClassification(_Encoder, GenericForTokenClassification, Qwen3PreTrainedModel):
    """Classifies tokens."""

    _auto_class = "AutoModelForTokenClassification"


class FlexQwenForQuestionAnswering(_Encoder, GenericForQuestionAnswering, Qwen3PreTrainedModel):
    """Finds the span of an answer."""

    _auto_class = "AutoModelForQuestionAnswering"


# "varlen" is a name for `attn_implementation`.
AttentionInterface.register("varlen", varlen_attention)
AttentionMaskInterface.register("varlen", sdpa_mask)
# Where the Trainer looks whether labels are to be shifted when it smooths them.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[FlexQwenConfig.model_type] = "FlexQwenForCausalLM"

__all__ = [
    "FlexQwenForCausalLM",
    "FlexQwenForMaskedLM",
    "FlexQwenForQuestionAnswering",
    "FlexQwenForSequenceClassification",
    "FlexQwenForTokenClassification",
    "FlexQwenModel",
]
