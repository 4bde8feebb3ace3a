"""Sentences of Universal Dependencies treebanks (CoNLL-U), with the text that they are written as."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import conllu

from flexqwen.evaluation import sources

NUMBER = {"Sing": "SG", "Plur": "PL"}
GENDER = {"Masc": "M", "Fem": "F"}


class Sentence:
    """A parsed sentence. Tokens are conllu's, known by their number, from 1; lemmas are in lower case.

    A token has some keys more: `lower` (its form), `relation` (`deprel` without the subtype), and `agreement` (gender
    and number in MorphoBr's names, each None where the treebank says none). `written` are the tokens of the text as it
    is written, where a contraction is one, and `starts` says at which character of `text` each of them stands.
    `is_whole`: the tokens make up the text that the treebank says.
    """

    def __init__(self, parsed: conllu.TokenList, prefix: str = ""):
        self.id = f"{prefix}{parsed.metadata.get('sent_id')}"
        self.tokens, self.starts, self.written = {}, {}, []
        self.contracted, self.children = set(), defaultdict(list)
        text = ""
        for token in parsed:
            number, features = token["id"], token["feats"] or {}
            token |= {"feats": features, "lemma": token["lemma"].lower(), "lower": token["form"].lower()}
            token["relation"] = token["deprel"].split(":")[0]
            token["agreement"] = GENDER.get(features.get("Gender")), NUMBER.get(features.get("Number"))
            if isinstance(number, int):
                self.tokens[number] = token
                self.children[token["head"]].append(token)
            elif number[1] == "-":
                self.contracted |= set(range(number[0], number[2] + 1))
            else:  # an empty node: not in the text
                continue
            if number not in self.contracted:
                self.written.append(token)
                self.starts[number] = len(text)
                text += token["form"] + ("" if (token["misc"] or {}).get("SpaceAfter") == "No" else " ")
        self.text = text.strip()
        self.is_whole = self.text == parsed.metadata.get("text", "").strip()

    def below(self, token: dict, *relations: str) -> list[dict]:
        """Children of a token, in any of these relations (subtypes included) if any are named."""
        return [child for child in self.children[token["id"]] if not relations or child["relation"] in relations]

    def subtree(self, token: dict) -> Iterator[dict]:
        yield token
        for child in self.children[token["id"]]:
            yield from self.subtree(child)

    def between(self, first: dict, second: dict) -> list[dict]:
        low, high = sorted((first["id"], second["id"]))
        return [self.tokens[number] for number in range(low + 1, high) if number in self.tokens]


def read_sentences(name: str, prefix: str | None = None) -> list[Sentence]:
    """The sentences of a treebank file of the evaluation data, such as `ud_pud/pt_pud-ud-test.conllu`.

    Their names begin with `prefix`, by default the file's: `pud-test:`.
    """
    if prefix is None:
        prefix = Path(name).stem.removeprefix("pt_").replace("-ud-", "-") + ":"
    return [Sentence(parsed, prefix) for parsed in conllu.parse(sources.read(name).decode())]
