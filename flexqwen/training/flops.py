"""How much of a GPU's arithmetic training uses: model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B)."""

import torch

# Dense bf16 FLOP/s of a GPU, by part of the name torch gives it (the first that fits), from data sheets.
PEAK_FLOPS = {
    "H200 NVL": 836e12,
    "H100 NVL": 836e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}


def peak_flops() -> float | None:
    """The first GPU's dense bf16 FLOP/s; None without a GPU or for one that is not in the table."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)


def model_flops(config, tokens: float, labels: float, attended: float) -> float:
    """FLOPs of the forward and backward passes over `tokens`, of which `labels` are predicted.

    6 for each weight that a token meets and 12 for each pair of positions and hidden unit of attention in every layer,
    causal or not, as is usual, but within a document only: `attended` positions for each token. The head is counted
    where there is a label, since it runs nowhere else.
    """
    width, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    attention = width * config.head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    layer = 6 * (attention + 3 * width * config.intermediate_size) + 12 * heads * attended
    return tokens * config.num_hidden_layers * layer + labels * 6 * width * config.vocab_size
