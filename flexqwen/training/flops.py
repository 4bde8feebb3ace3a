"""What training asks of a GPU: FLOPs, and their share of its peak (PaLM, arXiv 2204.02311, appendix B); and bytes."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# By part of the name that torch gives a GPU (the first that fits): dense bf16 FLOP/s, memory's bytes/s and gigabytes,
# from data sheets.
GPUS = {
    "H200 NVL": (836e12, 4.8e12, 141),
    "H100 NVL": (836e12, 3.9e12, 94),
    "H100 PCIe": (756e12, 2.0e12, 80),
    "H200": (989e12, 4.8e12, 141),
    "H100": (989e12, 3.35e12, 80),
    "A100": (312e12, 2.04e12, 80),
    "L40S": (362e12, 0.86e12, 48),
    "4090": (165e12, 1.01e12, 24),
}
FREE = ("empty", "detach", "_unsafe_view")  # operations that move nothing; views and questions do not, either


def find_gpu() -> str | None:
    """Name in `GPUS` of the first GPU; None without a GPU or for one that is not in the table."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((key for key in GPUS if key in name), None)


def peak_flops() -> float | None:
    """The first GPU's dense bf16 FLOP/s; None where `find_gpu` knows none."""
    return GPUS[gpu][0] if (gpu := find_gpu()) else None


def model_flops(config, tokens: float, labels: float, attended: float) -> float:
    """FLOPs of the forward and backward passes over `tokens`, of which `labels` are predicted.

    6 for each weight that a token meets and 12 for each pair of positions and hidden unit of attention in every layer,
    causal or not, as is usual, but within a document only: `attended` positions for each token. The head and the last
    layer's MLP are counted where there is a label, since they run nowhere else.
    """
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    attention = width * config.head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    mlp = 6 * 3 * width * config.intermediate_size
    layer = 6 * attention + mlp + 12 * heads * attended
    return tokens * (config.num_hidden_layers * layer - mlp) + labels * (mlp + 6 * width * config.vocab_size)


class Count(TorchDispatchMode):
    """Of the operations within it: bytes that they read and write (views none), and how many live at most.

    Attributes:
        bytes: read and written.
        live, peak: bytes of the tensors that were made within it and live now; their most.
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.live = self.peak = 0
        self._known = weakref.WeakSet()

    def _forget(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        read, made = ([x for x in tree_leaves(part) if isinstance(x, torch.Tensor)] for part in (args, found))
        for storage in (tensor.untyped_storage() for tensor in made):
            if storage not in self._known:
                self._known.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._forget, storage.nbytes())
        self.peak = max(self.peak, self.live)
        is_free = function.is_view or function.namespace == "prim" or any(word in function.name() for word in FREE)
        if not is_free:
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in (*read, *made))
        return found
