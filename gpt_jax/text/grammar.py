"""Grammars of random texts, which know the probability of every text and their own entropy.

A grammar is a tree of texts, sequences and choices. `read` makes it from rules, `draw` draws a text
from it, and `expectation` computes its exact entropy.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from math import log
from typing import TypeAlias

Node: TypeAlias = "str | tuple[Node, ...] | Choice"  # A text, a sequence, or a choice.


@dataclass(frozen=True, eq=False)
class Choice:
    """One of `nodes`; the k-th has probability weights[k] / sum(weights)."""

    name: str
    weights: tuple[int, ...]
    nodes: tuple[Node, ...]

    @cached_property
    def cumulative(self) -> tuple[int, ...]:
        """Running sums of the weights; the last one is their total."""
        return tuple(accumulate(self.weights))


def phrase(text: str, nodes: Mapping[str, Node]) -> Node:
    """Return `text` with every {name} replaced by its node and every "/" by a newline."""
    pieces = re.split(r"{(\w+)}", re.sub(" */ *", "\n", text))
    parts = tuple(nodes[piece] if k % 2 else piece for k, piece in enumerate(pieces) if piece)
    return parts[0] if len(parts) == 1 else parts


def read(rules: str, known: Mapping[str, Node]) -> dict[str, Node]:
    """Return `known`, and the choices that `rules` define, by name.

    "name: 3 these words | 1 those" chooses a word; each word has the weight of its group.
    "name = 3 this | 1 that {other}" chooses a phrase. Indented lines continue a rule.
    A rule sees only the names above it, so no rule is recursive. A rule that seems to name
    itself extends the rule of that name above it.
    """
    nodes = dict(known)
    for rule in re.sub("\n +", " ", rules.strip()).splitlines():
        name, kind, body = re.split(" ?([:=]) ", rule, maxsplit=1)
        pairs: list[tuple[int, Node]] = []
        for group in body.split(" | "):
            weight, text = group.split(" ", 1)
            alternatives = text.split() if kind == ":" else [text]
            pairs += ((int(weight), phrase(alternative, nodes)) for alternative in alternatives)
        nodes[name] = Choice(name, *zip(*pairs, strict=True))
    return nodes


def draw(node: Node, uniform: Callable[[], float], pieces: list[str]) -> float:
    """Append a text of `node`, chosen by `uniform` numbers in [0, 1). Return its -log p in nats."""
    if isinstance(node, str):
        pieces.append(node)
        return 0.0
    if isinstance(node, tuple):
        return sum(draw(part, uniform, pieces) for part in node)
    total = node.cumulative[-1]
    index = bisect_right(node.cumulative, uniform() * total)
    return log(total / node.weights[index]) + draw(node.nodes[index], uniform, pieces)


@cache
def expectation(node: Node) -> tuple[float, float]:
    """Return the entropy in nats and the mean number of characters of the texts of `node`."""
    if isinstance(node, str):
        return 0.0, float(len(node))
    if isinstance(node, tuple):
        children = [(1.0, part) for part in node]  # Certain, so -log p is 0.
    else:
        total = node.cumulative[-1]
        children = [(w / total, child) for w, child in zip(node.weights, node.nodes, strict=True)]
    entropy, length = 0.0, 0.0
    for probability, child in children:
        nats, characters = expectation(child)
        entropy += probability * (nats - log(probability))
        length += probability * characters
    return entropy, length
