"""Generated sentence pairs with a similarity: a stand-in for STS-B.

A sentence says who does what, to whom, where and when, in one of several orders. Each
of these five slots is filled with one of a few words. The similarity of two sentences
is the number of slots that they share, from 0 to 5, as in STS-B. A synonym in a shared
slot costs half a point. The language is a toy, so scores on it say nothing about
English.
"""

from typing import NamedTuple

import numpy as np

# For each slot a list of meanings, and for each meaning a list of synonyms.
_SLOTS = (
    (("man", "guy"), ("woman", "lady"), ("child", "kid"), ("dog", "hound"), ("cook",)),
    (("eats",), ("sells", "trades"), ("paints", "draws"), ("carries",), ("cuts",)),
    (("apple",), ("boat", "ship"), ("guitar",), ("bread", "loaf"), ("stone", "rock")),
    (("kitchen",), ("garden", "yard"), ("street", "road"), ("market",), ("forest",)),
    (("today",), ("tonight",), ("often", "frequently"), ("slowly",), ("again",)),
)
_ORDERS = (
    "a {0} {1} the {2} in the {3} {4}",
    "{4} a {0} {1} the {2} in the {3}",
    "in the {3} a {0} {1} the {2} {4}",
    "the {0} {4} {1} a {2} in the {3}",
)
_SYNONYM_COST = 0.5
HIGHEST = 5.0


class Pairs(NamedTuple):
    """Sentence pairs and their similarity."""

    first: list[str]
    second: list[str]
    scores: np.ndarray  # float32 [num], from 0 to 5


def vocabulary() -> list[str]:
    """Returns all words of the sentences, after the four special tokens of BERT."""
    words = {word for slot in _SLOTS for meaning in slot for word in meaning}
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words | {"a", "the", "in"})]


def make_pairs(num: int, rng: np.random.Generator) -> Pairs:
    """Generates pairs in which every number of shared slots is equally frequent."""
    first, second, scores = [], [], np.empty(num, np.float32)
    for row in range(num):
        shared = rng.permutation(len(_SLOTS)) < rng.integers(len(_SLOTS) + 1)
        left, right, score = [], [], 0.0
        for meanings, is_shared in zip(_SLOTS, shared, strict=True):
            one, other = rng.permutation(len(meanings))[:2]
            words = [
                str(rng.choice(meanings[meaning]))
                for meaning in (one, one if is_shared else other)
            ]
            left.append(words[0])
            right.append(words[1])
            if is_shared:
                score += 1 if words[0] == words[1] else 1 - _SYNONYM_COST
        for sentences, words in ((first, left), (second, right)):
            sentences.append(str(rng.choice(_ORDERS)).format(*words))
        scores[row] = score
    return Pairs(first, second, scores)
