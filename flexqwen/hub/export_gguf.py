"""Writes a plain Qwen3 and its tokenizer as one GGUF file, which llama.cpp runs, through the `gguf` package.

llama.cpp has its patterns of splitting text built in, and its own converter tells them apart by a hash over token ids,
which no vocabulary of one's own can match. Here the pattern itself is compared.
"""

import json
import sys
from pathlib import Path

from flexqwen.cli import InputError
from flexqwen.data.tokenizer import OLD_WORDS, WORDS
from flexqwen.files import atomic_write

OUTTYPES = ("f32", "f16", "q8_0")
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {WORDS: "ufakzeka", OLD_WORDS: "ufakzeka", QWEN: "qwen2"}  # llama.cpp's names
SIZES = {"context_length": "max_position_embeddings", "embedding_length": "hidden_size"}
SIZES |= {"block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size"}
SIZES |= {"head_count": "num_attention_heads", "head_count_kv": "num_key_value_heads"}
SIZES |= dict.fromkeys(["key_length", "value_length", "rope_dimension_count"], "head_dim")


def write_gguf(model, tokenizer, output: Path, outtype: str, is_causal: bool) -> None:
    """Writes a `Qwen3ForCausalLM` to the file `output`, which llama.cpp runs causally or not unless told otherwise.

    `outtype` is of the matrices; vectors are float32. A matrix whose rows q8_0 cannot divide is float16.
    """
    try:
        import gguf
    except ImportError:
        raise InputError("writing GGUF needs the package gguf; install it with pip install gguf") from None
    config, parts = model.config, json.loads(tokenizer.backend_tokenizer.to_str())
    if config.rope_parameters["rope_type"] != "default" or set(config.layer_types) != {"full_attention"}:
        raise InputError("this checkpoint has scaled rotary embeddings or windowed attention, which are not exported")
    splits = [part["pattern"].get("Regex") for part in find_splits(parts["pre_tokenizer"])]
    if len(splits) != 1 or splits[0] not in PATTERNS:
        raise InputError(f"llama.cpp has no built-in pattern that splits text as this tokenizer does: {splits}")
    if splits[0] == OLD_WORDS:
        print("note: llama.cpp splits combining accents (e + U+0301) otherwise than this tokenizer", file=sys.stderr)
    if parts["normalizer"] is not None:
        print("note: llama.cpp does not normalize text, as this tokenizer does; give it such text", file=sys.stderr)
    with atomic_write(output) as partial:
        writer = gguf.GGUFWriter(partial, "qwen3")
        writer.add_name(output.stem)
        for name, ours in SIZES.items():
            getattr(writer, f"add_{name}")(getattr(config, ours))
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_causal_attention(is_causal)
        writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if outtype == 'f32' else 'MOSTLY'}_{outtype.upper()}"])
        add_tokenizer(writer, gguf.TokenType, tokenizer, parts, config.vocab_size, PATTERNS[splits[0]])
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
        for name, tensor in model.state_dict().items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            kind = gguf.GGMLQuantizationType[outtype.upper() if tensor.dim() > 1 else "F32"]
            if outtype == "q8_0" and tensor.dim() > 1 and tensor.shape[-1] % 32:
                kind = gguf.GGMLQuantizationType.F16
            data = gguf.quants.quantize(tensor.float().numpy(), kind)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def find_splits(part: dict) -> list[dict]:
    """The steps of a pre-tokenizer that split by a pattern."""
    inner = [split for each in part.get("pretokenizers", ()) for split in find_splits(each)]
    return [*inner, part] if part["type"] == "Split" else inner


def add_tokenizer(writer, types, tokenizer, parts: dict, vocab_size: int, pattern: str) -> None:
    """Adds a byte-level BPE. Its special tokens are only those that it is told are there, as everywhere here."""
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {token["id"]: types.CONTROL if token["special"] else types.USER_DEFINED for token in parts["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pattern)
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(vocab_size)])
    unused = {number: types.UNUSED for number in range(vocab_size) if number not in tokens}
    writer.add_token_types([(added | unused).get(number, types.NORMAL) for number in range(vocab_size)])
    writer.add_token_merges([" ".join(pair) for pair in parts["model"]["merges"]])
    for role in ("bos", "eos", "pad", "mask"):
        getattr(writer, f"add_{role}_token_id")(getattr(tokenizer, f"{role}_token_id"))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
