"""What the page answers, from a published checkpoint alone: surprisals, fillings, continuations, and their HTML.

Surprisal is -log2 of the probability of a token, in bits: given those before it (causal), or given all others (masked:
one copy of the text a token, in which that token is masked; Salazar et al., ACL 2020). Nothing here is kept.
"""

import html
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

CHARACTERS, TOKENS, MASKS = 2000, 200, 10  # of a text, at most
BATCH_TOKENS = 4096  # that go through the model at a time
CANDIDATES, BEAMS = 5, 4  # shown for a mask; fillings of a text that are followed
TOP_P = 0.95  # of the probability, from which the next token is drawn (nucleus sampling, arXiv 1904.09751)
SCALE = {"causal": 16, "masked": 16, "difference": 5}  # bits of the deepest colour and of the longest bar
MASK = re.compile(r"\s*(?:_{3,}|\[MASK\]|<mask>)")  # as people write it; the space before belongs to the filled word


class Refused(ValueError):
    """A text that is not answered. `reason` names the line in texts.yaml that says why, `values` what stands in it."""

    def __init__(self, reason: str, **values):
        super().__init__(reason)
        self.reason, self.values = reason, values


class Mask(NamedTuple):
    """A filled mask: what all masks together got here, and the candidates (text, probability) for it alone."""

    filled: str
    candidates: list[tuple[str, float]]


class Copy(NamedTuple):
    """Characters `start` to `end` of a text stand word for word in a document of this source and licence."""

    start: int
    end: int
    source: str
    licence: str


class Checkpoint:
    """A FlexQwen and its tokenizer.

    Args:
        name: a folder, or a repository of the Hugging Face Hub. Its code is run.
    """

    def __init__(self, name: str):
        self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
        self.model = AutoModelForMaskedLM.from_pretrained(name, dtype=torch.float32, trust_remote_code=True).eval()
        self.backend = self.tokenizer.backend_tokenizer
        self.backend.encode_special_tokens = True  # "</s>" that somebody types is text
        config = self.model.config
        self.bos, self.eos, self.mask = config.bos_token_id, config.eos_token_id, config.mask_token_id
        self.unwritten = [token for token in (self.bos, self.mask, config.pad_token_id) if token is not None]
        self.shift = int(config.masked_prediction == "next_token")
        self.most = min(TOKENS, config.max_position_embeddings - 1)

    def encode(self, text: str) -> tuple[list[int], list[str]]:
        """Ids of the tokens of a text, and the piece of the text that each stands for; together they are the text."""
        if not text.strip():
            raise Refused("empty")
        if len(text) > CHARACTERS:
            raise Refused("long", found=len(text), most=CHARACTERS, unit="characters")
        encoding = self.backend.encode(text, add_special_tokens=False)
        if len(encoding.ids) > self.most:
            raise Refused("long", found=len(encoding.ids), most=self.most, unit="tokens")
        pieces, done = [], 0
        for _, end in encoding.offsets:  # several tokens may share a character, such as an emoji
            pieces.append(text[done:end])
            done = max(done, end)
        pieces[-1] += text[done:]
        return encoding.ids, pieces

    def hidden(self, rows: torch.Tensor, **options) -> torch.Tensor:
        return self.model.model(rows, use_cache=False, **options).last_hidden_state

    def columns(self, text: str) -> tuple[list[str], dict[str, list[float]]]:
        """The pieces of a text, and their surprisals by mode."""
        ids, pieces = self.encode(text.strip())
        return pieces, {"causal": self.surprisals(ids, False), "masked": self.surprisals(ids, True)}

    @torch.inference_mode()
    def surprisals(self, ids: Sequence[int], masked: bool) -> list[float]:
        """Bits of each token."""
        row = torch.tensor([self.bos, *ids])
        if masked:
            places = torch.arange(1, len(row))
            rows = row.repeat(len(ids), 1)
            rows[places - 1, places] = self.mask
            size = max(1, BATCH_TOKENS // len(row))
            parts = zip(rows.split(size), places.split(size), strict=True)
            found = [self.hidden(part, is_causal=False)[range(len(at)), at - self.shift] for part, at in parts]
            hidden = torch.cat(found)
        else:
            hidden = self.hidden(row[None], is_causal=True)[0, :-1]
        logits = self.model.lm_head(hidden).float()
        nats = logits.logsumexp(-1) - logits.gather(-1, row[1:, None])[:, 0]
        return (nats / math.log(2)).tolist()

    @torch.inference_mode()
    def fill(self, text: str) -> tuple[list[str], list[Mask]]:
        """The parts of a text between its masks, and what fills them: a token each, all of them together."""
        parts = MASK.split(text)
        if not text.strip() or len(text) > CHARACTERS:
            self.encode(text)  # says why
        if not 0 < len(parts) - 1 <= MASKS:
            raise Refused("masks", found=len(parts) - 1, most=MASKS)
        ids = [self.bos]
        for number, part in enumerate(parts):
            ids += [self.mask] * (number > 0) + self.backend.encode(part, add_special_tokens=False).ids
        if len(ids) > self.most:
            raise Refused("long", found=len(ids), most=self.most, unit="tokens")
        row = torch.tensor([ids])
        places = (row[0] == self.mask).nonzero()[:, 0]
        probabilities = self.model(row).logits[0, places].float().softmax(-1)
        filled = self.model.fill(row, num_beams=BEAMS)[0, places].tolist()
        masks = []
        for token, row in zip(filled, probabilities, strict=True):
            best, decode = row.topk(CANDIDATES), self.tokenizer.decode
            candidates = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            masks.append(Mask(decode([token]), [(decode([candidate]), p) for candidate, p in candidates]))
        return parts, masks

    def write(self, text: str, bidirectional: bool, tokens: int, temperature: float, seed: int) -> Iterator[str]:
        """Yields what follows a text, each time a token longer.

        Args:
            bidirectional: the text's own tokens see each other in both directions (prefix language modelling).
            temperature: 0 takes the likeliest token; above, one is drawn from the nucleus of `TOP_P`.
        """
        ids = [self.bos, *self.encode(text)[0]]
        given, cache, written, generator = ids, None, [], torch.Generator().manual_seed(seed)
        options = {"prefix_length": torch.tensor([len(ids)])} if bidirectional else {}
        for _ in range(min(tokens, self.model.config.max_position_embeddings - len(ids))):
            with torch.inference_mode():
                inputs = torch.tensor([given])
                outputs = self.model.model(inputs, past_key_values=cache, use_cache=True, is_causal=True, **options)
                logits = self.model.lm_head(outputs.last_hidden_state[0, -1]).float()
                logits[self.unwritten] = -math.inf
                token = int(draw(logits, temperature, generator))
            if token == self.eos:
                break
            written.append(token)
            yield self.tokenizer.decode(written)
            given, cache, options = [token], outputs.past_key_values, {}


def draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """The next token, from the likeliest ones that together have `TOP_P` of the probability."""
    if temperature == 0:
        return logits.argmax()
    probabilities, order = (logits / temperature).softmax(-1).sort(descending=True)
    probabilities[probabilities.cumsum(-1) - probabilities > TOP_P] = 0
    return order[torch.multinomial(probabilities, 1, generator=generator)]


def escape(text: str) -> str:
    """Text as HTML, which is no template either: Gradio knows `{{…}}` and `${…}`."""
    return html.escape(text).replace("{", "&#123;").replace("$", "&#36;")


def number(value: float, texts: dict) -> str:
    return f"{value:z.2f}".replace(".", texts["decimal"]).replace("-", "−")


def token_strip(name: str, pieces: Sequence[str], values: Sequence[float], texts: dict) -> str:
    """A text whose tokens are coloured by bits, and say them when pointed at. A negative value is another colour."""
    tokens = []
    for piece, value in zip(pieces, values, strict=True):
        word = piece.lstrip()
        shown = escape(word) or ("·" if not piece else "␣")
        style = f"--v:{min(abs(value) / SCALE[name], 1):.3f}"
        bits = f"{number(value, texts)} bits"
        sign = "below" if value < 0 else "above"
        space = piece[: len(piece) - len(word)]
        tokens.append(f'{space}<span class="{sign}" tabindex="-1" style="{style}" data-bits="{bits}">{shown}</span>')
    title = f"<b>{texts[name]}</b> {number(sum(values), texts)} bits"
    return f'<figure class="{name}"><figcaption>{title}</figcaption><p>{"".join(tokens)}</p></figure>'


def bar(name: str, value: float, texts: dict) -> str:
    """A cell of a table with a bar behind its number; that of a difference begins in the middle."""
    is_difference = name == "difference"
    size = min(abs(value) / SCALE[name], 1) * (50 if is_difference else 100)
    start = 50 - size * (value < 0) if is_difference else 0
    sign = "below" if value < 0 else "above"
    style = f"--a:{start:.1f}%;--b:{start + size:.1f}%"
    return f'<td class="{name} {sign}" style="{style}">{number(value, texts)}</td>'


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return f'<div class="scroll" tabindex="0"><table><tr>{cells}</tr>{"".join(rows)}</table></div>'


def show_modes(checkpoint: Checkpoint, texts: dict, text: str) -> str:
    """Each token of a text in both modes, and the difference: what seeing the right side too saves."""
    pieces, columns = checkpoint.columns(text)
    columns["difference"] = [one - other for one, other in zip(*columns.values(), strict=True)]
    strips = [token_strip(name, pieces, values, texts) for name, values in columns.items()]
    rows = []
    for piece, *values in zip(pieces, *columns.values(), strict=True):
        bars = "".join(bar(name, value, texts) for name, value in zip(columns, values, strict=True))
        rows.append(f'<tr><th scope="row">{escape(piece.strip()) or "·"}</th>{bars}</tr>')
    head = [texts["token"], *(f"{texts[name]} (bits)" for name in columns)]
    return "".join(strips) + f"<p>{texts['legend']}</p>" + table(head, rows)


def show_fill(checkpoint: Checkpoint, texts: dict, text: str) -> str:
    """A text with its masks filled together, and the candidates for each."""
    parts, masks = checkpoint.fill(text.strip())
    whole = escape(parts[0])
    for mask, part in zip(masks, parts[1:], strict=True):
        word = mask.filled.lstrip()
        whole += f"{' ' * (word != mask.filled)}<mark>{escape(word) or '␣'}</mark>{escape(part)}"
    rows = []
    for place, mask in enumerate(masks, 1):
        cells = "".join(
            f'<td class="masked above{" chosen" * (word == mask.filled)}" style="--a:0%;--b:{p:.1%}">'
            f"{escape(word.strip()) or '␣'} <small>{number(p * 100, texts)} %</small></td>"
            for word, p in mask.candidates
        )
        rows.append(f'<tr><th scope="row">{place}</th>{cells}</tr>')
    head = [texts["mask"], *map(str, range(1, CANDIDATES + 1))]
    return f'<p class="filled">{whole}</p>' + table(head, rows)


def find_copies(index, written: str) -> list[Copy]:
    """What the model wrote word for word as a dataset has it, of which `index` is the index of `trace`, or None."""
    spans = index.trace(written)["spans"] if index else []
    first = [(span["characters"], span["documents"][0]) for span in spans]
    return [Copy(*characters, document["source"], document["license"]) for characters, document in first]


def show_written(prompt: str, written: str, texts: dict, copies: Sequence[Copy] = ()) -> str:
    """A prompt and what was written, in which what is copied is marked, with its source and licence."""
    shown, done = "", 0
    for start, end, source, licence in sorted(copies):
        start = max(start, done)  # passages may overlap
        if start >= end:
            continue
        title = escape(f"{source}; {licence}")
        shown += escape(written[done:start]) + f'<mark title="{title}" tabindex="0">{escape(written[start:end])}</mark>'
        done = end
    shown += escape(written[done:])
    sources = dict.fromkeys(f"<li>{escape(copy.source)} ({escape(copy.licence)})</li>" for copy in copies)
    listed = f"<p>{texts['copied']}</p><ul>{''.join(sources)}</ul>" if copies else ""
    return f'<p class="written"><b>{escape(prompt)}</b>{shown}</p>{listed}'


def show_likelier(checkpoint: Checkpoint, texts: dict, one: str, other: str) -> str:
    """Which of two sentences is likelier, in three modes, and where they differ."""
    names = ("causal", "masked", "fused")
    scores, strips = [], []
    for sentence in (one, other):
        pieces, columns = checkpoint.columns(sentence)
        strips += [token_strip(name, pieces, values, texts) for name, values in columns.items()]
        both = [sum(values) for values in columns.values()]
        scores.append([*both, sum(both)])
    rows = []
    for name, first, second in zip(names, *scores, strict=True):
        cells = "".join(
            f"<td>{number(value, texts)}{' <b>✓</b>' * (value < rival)}</td>"
            for value, rival in ((first, second), (second, first))
        )
        says = texts["same"] if first == second else texts["likelier"][first > second]
        said = says.format(bits=number(abs(first - second), texts))
        rows.append(f'<tr><th scope="row">{texts[name]}</th>{cells}<td>{said}</td></tr>')
    head = [texts["mode"], f"{texts['one']} (bits)", f"{texts['other']} (bits)", ""]
    headings = [f"<h4>{texts[name]}</h4>" for name in ("one", "other")]
    return table(head, rows) + headings[0] + "".join(strips[:2]) + headings[1] + "".join(strips[2:])
