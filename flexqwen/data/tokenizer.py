"""Byte-level BPE for Portuguese, with the mask token."""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from flexqwen.cli import ArgumentParser, InputError, command, path
from flexqwen.data.texts import count_texts, dataset_digest, read_texts
from flexqwen.files import atomic_write, is_made, read_json, versions, write_json
from flexqwen.remote import explain_failure

PAD, BOS, EOS, MASK = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<mask>")
MADE_BY = "made_by.json"
FORMAT = 2  # of the tokenizer; raise it where the same texts and size give another one
QWEN3_ROLES = {"pad": "<|fim_pad|>", "bos": "<|im_start|>", "eos": "<|endoftext|>", "mask": "<|fim_middle|>"}

# Words with their leading space, numbers digit by digit (so that a model can learn what a digit is worth), runs of
# punctuation, and line breaks by themselves. Apostrophes and hyphens split words: "d'água", "disse-lhe". llama.cpp has
# this pattern built in; the one before took combining accents for letters.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
OLD_WORDS = WORDS.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+")  # of tokenizers with format 1


def train_tokenizer(dataset: str | Path, vocab_size: int, progress: bool = True) -> PreTrainedTokenizerFast:
    """Trains byte-level BPE on the dataset's `tokenizer` split. Lossless: any text decodes to itself.

    Encoding puts BOS in front. The mask token takes the space before it, as a word does. Same texts, same tokenizer.
    """
    minimum = 256 + len(SPECIAL_TOKENS)
    if vocab_size < minimum:
        raise InputError(f"vocab_size is {vocab_size}; byte-level BPE needs at least {minimum}")
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, lstrip=token == MASK, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=progress,
    )
    texts = (text for _, text in read_texts(dataset, "tokenizer", "train"))
    total = count_texts(dataset, "tokenizer", "train")
    tokenizer.train_from_iterator(tqdm(texts, "tokenizer", total, unit="doc", disable=not progress), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        what = f"the tokenizer split of {dataset} gives only {tokenizer.get_vocab_size()} tokens"
        remedy = "lower vocab_size or build the dataset from more documents"
        raise InputError(f"{what}, vocab_size asks for {vocab_size}; {remedy}")
    _begin_with(tokenizer, BOS, EOS)
    # What scores sentences as BERT's takes what stands first for CLS: unset, it would score BOS.
    special = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "cls_token": BOS}
    special["mask_token"] = AddedToken(MASK, lstrip=True, special=True)
    options = {"clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **options)


def adapt_tokenizer(checkpoint: str, roles: dict[str, str] = QWEN3_ROLES) -> PreTrainedTokenizerFast:
    """A checkpoint's tokenizer, same ids, with four of its special tokens as pad, BOS, EOS and mask."""
    with explain_failure(f"no tokenizer can be loaded from {checkpoint}", "name a Qwen3 checkpoint"):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    vocabulary = tokenizer.get_vocab()
    for role, token in roles.items():
        if token not in vocabulary:
            what = f"no token {token}, which is to be its {role} token"
            raise InputError(f"the tokenizer of {checkpoint} has {what}; only Qwen3's can be adapted")
        setattr(tokenizer, f"{role}_token", token)
    _begin_with(tokenizer.backend_tokenizer, roles["bos"], roles["eos"])
    return tokenizer


def _begin_with(tokenizer: Tokenizer, bos: str, eos: str) -> None:
    """Makes encoding put BOS in front of a text, and EOS between two."""
    ids, pair = [(token, tokenizer.token_to_id(token)) for token in (bos, eos)], f"{bos} $A {eos} $B:1"
    tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", pair, ids)


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m flexqwen tokenizer", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="carolina_originality", help="a folder made by carolina_originality.py")
    parser.add_argument("--adapt", metavar="CHECKPOINT", help="adapt a Qwen3 checkpoint's tokenizer; none is trained")
    parser.add_argument("--vocab_size", type=int, default=8192, help="size of the vocabulary, special tokens included")
    parser.add_argument("--output", type=path, default=Path("runs/tokenizer"), help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a tokenizer made from something else")
    args = parser.parse_args(argv)
    if args.adapt:
        made_by = {"format": FORMAT, "adapted_from": args.adapt, **QWEN3_ROLES}
    else:
        made_by = {"format": FORMAT, "dataset_digest": dataset_digest(args.dataset), "vocab_size": args.vocab_size}
    if is_made(args.output, read_json(args.output / MADE_BY), made_by, args.overwrite):
        return
    tokenizer = adapt_tokenizer(args.adapt) if args.adapt else train_tokenizer(args.dataset, args.vocab_size)
    with atomic_write(args.output) as partial:
        tokenizer.save_pretrained(partial)
        write_json(partial / MADE_BY, made_by | {"versions": versions("tokenizers")})
    print(f"tokenizer: {args.output} ({len(tokenizer)} tokens)")
