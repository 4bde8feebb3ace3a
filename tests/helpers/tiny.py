"""A tiny FlexQwen, the Qwen3 of the same weights, inputs for both, and packed rows."""

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from configuration_flexqwen import FlexQwenConfig
from modeling_flexqwen import FlexQwenForCausalLM

PAD, BOS, EOS, MASK = 0, 1, 2, 3
VOCABULARY = 64
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")
LENGTH = 12
DOCUMENT_STARTS = (0, 5, 9)  # of a packed row
# The encoder heads first: they need a registration that loading any other class would have made for them.
CLASSES = {
    "AutoModelForSequenceClassification": "FlexQwenForSequenceClassification",
    "AutoModelForTokenClassification": "FlexQwenForTokenClassification",
    "AutoModelForQuestionAnswering": "FlexQwenForQuestionAnswering",
    "AutoConfig": "FlexQwenConfig",
    "AutoModel": "FlexQwenModel",
    "AutoModelForCausalLM": "FlexQwenForCausalLM",
    "AutoModelForMaskedLM": "FlexQwenForMaskedLM",
}


def make_model(cls=FlexQwenForCausalLM, implementation="sdpa", dtype=torch.float32, **changes):
    torch.manual_seed(0)
    config = FlexQwenConfig(**{**SHAPE, "mask_token_id": MASK, **changes}, attn_implementation=implementation)
    model = cls(config)
    for parameter in model.parameters():  # far from initialisation, so that leaks are visible
        parameter.data.normal_(0, 0.2)
    return model.to(dtype).eval()


def make_qwen3(model, implementation="sdpa"):
    config = {key: getattr(model.config, key) for key in SHAPE}
    qwen3 = Qwen3ForCausalLM(Qwen3Config(**config, attn_implementation=implementation)).to(model.dtype).eval()
    qwen3.load_state_dict(model.state_dict())
    return qwen3


def make_ids(batch=2, length=LENGTH, seed=0):
    return torch.randint(4, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def packed_positions(batch):
    starts = torch.tensor(DOCUMENT_STARTS)
    columns = torch.arange(LENGTH)
    owner = (columns[:, None] >= starts).sum(-1) - 1
    return (columns - starts[owner]).expand(batch, -1), owner


class Rows:
    """Packed rows in memory, of documents of random length."""

    def __init__(self, length: int, number: int = 64):
        self.info = {
            f"{name}_token_id": token
            for name, token in zip(("pad", "bos", "eos", "mask"), (PAD, BOS, EOS, MASK), strict=True)
        }
        self.info |= {"vocab_size": VOCABULARY, "sequence_length": length}
        rng = np.random.default_rng(length)
        self.input_ids = rng.integers(4, VOCABULARY, (number, length)).astype(np.uint16)
        self.input_ids[rng.random((number, length)) < 0.1] = BOS
        self.input_ids[:, 0] = BOS

    def __len__(self) -> int:
        return len(self.input_ids)


class Tokenizer:
    pad_token_id = PAD
