"""STS-B: sentence pairs with a similarity, as tokens for BERT."""

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.files import Release, find_folder
from experiments.data.sentences import HIGHEST, Pairs, make_pairs, vocabulary
from experiments.data.splits import check_least, in_words, streams

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_BERT = Release("a BERT release")
_MOST_WORDS, _MOST_PAIRS = 200_000, 25_000  # lines of a file
_LONGEST_WORD = 100  # characters; a longer one is [UNK], as in BERT
# The default sizes of the generated stand-in.
_GENERATED_TRAIN, _GENERATED_TEST = 1_024, 256


class _Form(NamedTuple):
    """The files of one of the two releases. GLUE's test scores are secret."""

    release: Release
    train: str
    test: str
    num_headers: int  # lines before the pairs
    columns: tuple[int, int, int]  # of the score and the two sentences


_FORMS = (
    _Form(Release("GLUE's STS-B.zip"), "train.tsv", "dev.tsv", 1, (9, 7, 8)),
    _Form(
        Release("Stsbenchmark.tar.gz"), "sts-train.csv", "sts-test.csv", 0, (4, 5, 6)
    ),
)


class Split(NamedTuple):
    """Pairs as `[CLS] first [SEP] second [SEP]`, then `[PAD]`."""

    tokens: np.ndarray  # int32 [num, length]
    segments: np.ndarray  # int32 [num, length], 1 for the second sentence
    mask: np.ndarray  # bool [num, length], False for `[PAD]`
    scores: np.ndarray  # float32 [num], from 0 to 1: a fifth of the release's


@dataclass(frozen=True)
class Sts:
    """Two splits, the size of the vocabulary, and a description of the pairs' source.

    Pairs that were longer than the length have been cut, the longer sentence first.
    """

    train: Split
    test: Split
    vocabulary_size: int
    source: str


def load_sts(
    data_dir: Path | None = None,
    *,
    length: int = 64,
    num_train: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
) -> Sts:
    """Loads STS-B with a WordPiece vocabulary, or generates pairs in its place.

    The folder contains `vocab.txt`, the vocabulary of an uncased BERT with one token in
    each line. It also contains either GLUE's `train.tsv` and `dev.tsv` (for testing),
    or the original `sts-train.csv` and `sts-test.csv`. Without a folder, pairs of a toy
    language are generated from the seed, see `make_pairs`. The length is in tokens,
    including the three special tokens and padding. If a number is given, the first
    pairs are used. If it is None, all pairs are used, or 1,024 and 256 are generated.

    References:
        Cer, Diab, Agirre, Lopez-Gazpio, Specia, "SemEval-2017 task 1: semantic textual
        similarity", 2017, https://arxiv.org/abs/1708.00055.
    """
    check_least(1, num_train=num_train, num_test=num_test)
    check_least(5, length=length)
    if data_dir is None:
        sizes = (num_train or _GENERATED_TRAIN, num_test or _GENERATED_TEST)
        parts = map(make_pairs, sizes, streams(seed, 2))
        words = {token: place for place, token in enumerate(vocabulary())}
        origin = "generated sentence pairs, not STS-B,"
    else:
        form = _find(data_dir)
        words = read_vocabulary(data_dir / "vocab.txt")
        files = ((form.train, num_train), (form.test, num_test))
        parts = [read_pairs(data_dir / name, form, num) for name, num in files]
        origin = f"STS-B files {form.train} and {form.test} in {data_dir}"
    train, test = (encode_pairs(part, words, length) for part in parts)
    source = f"{origin} ({in_words(len(train.scores), len(test.scores))})"
    return Sts(train, test, len(words), source)


def read_vocabulary(path: Path) -> dict[str, int]:
    """Reads a WordPiece vocabulary, from token to index."""
    tokens = _BERT.lines(path, _MOST_WORDS)
    words = {token: place for place, token in enumerate(tokens)}
    missing = [token for token in _SPECIAL if token not in words]
    if missing:
        raise _BERT.error(path, f"has no {', '.join(missing)}", "one token a line")
    if len(words) < len(tokens):
        found = f"has {len(tokens) - len(words)} lines that repeat a token"
        raise _BERT.error(path, found, "each token once")
    return words


def read_pairs(path: Path, form: _Form, num: int | None) -> Pairs:
    """Reads one file, tab-separated and without quotes, for the first or all pairs."""
    first, second, scores = [], [], []
    for number, line in enumerate(form.release.lines(path, _MOST_PAIRS), 1):
        if not line or number <= form.num_headers:
            continue
        fields = line.split("\t")
        if len(fields) <= max(form.columns):
            found = f"has {len(fields)} fields in line {number}"
            expected = f"{max(form.columns) + 1} fields with tabs between"
            raise form.release.error(path, found, expected)
        score, one, other = (fields[column] for column in form.columns)
        try:
            scores.append(float(score))
        except ValueError:
            scores.append(-1.0)
        if not 0 <= scores[-1] <= HIGHEST:  # a NaN is refused too
            found = f"has the score {score[:40]!r} in line {number}"
            raise form.release.error(path, found, "a number from 0 to 5")
        first.append(one)
        second.append(other)
    if not scores:
        raise form.release.error(path, "holds no pairs", "sentence pairs")
    return Pairs(first[:num], second[:num], np.array(scores[:num], np.float32))


def word_pieces(sentence: str, words: dict[str, int]) -> list[str]:
    """Cuts a sentence into the tokens of an uncased BERT.

    The text is lower case without accents. Words end at blanks, and each punctuation
    mark or Chinese character is a word. A word becomes the longest token with which it
    begins, then repeatedly the longest `##token` that continues it, or `[UNK]` if
    these tokens do not cover the whole word.
    """
    spaced = []
    for character in unicodedata.normalize("NFD", sentence.lower()):
        category = unicodedata.category(character)
        if character.isspace():
            spaced.append(" ")
        elif _stands_alone(character, category):
            spaced.append(f" {character} ")
        elif category != "Mn" and category[0] != "C" and character != "\ufffd":
            spaced.append(character)
    return [piece for word in "".join(spaced).split() for piece in _cut(word, words)]


def encode_pairs(pairs: Pairs, words: dict[str, int], length: int) -> Split:
    """Turns pairs into the arrays that BERT reads, see `Split`."""
    num = len(pairs.scores)
    tokens = np.full([num, length], words["[PAD]"], np.int32)
    segments = np.zeros([num, length], np.int32)
    mask = np.zeros([num, length], bool)
    for row, sentences in enumerate(zip(pairs.first, pairs.second, strict=True)):
        one, other = (word_pieces(sentence, words) for sentence in sentences)
        while len(one) + len(other) > length - 3:
            (one if len(one) > len(other) else other).pop()
        line = ["[CLS]", *one, "[SEP]", *other, "[SEP]"]
        tokens[row, : len(line)] = [words[token] for token in line]
        segments[row, len(one) + 2 : len(line)] = 1
        mask[row, : len(line)] = True
    return Split(tokens, segments, mask, pairs.scores / np.float32(HIGHEST))


def _cut(word: str, words: dict[str, int]) -> list[str]:
    """Cuts one word into tokens, greedily."""
    if len(word) > _LONGEST_WORD:
        return ["[UNK]"]
    pieces, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        for end in range(len(word), start, -1):
            if prefix + word[start:end] in words:
                pieces.append(prefix + word[start:end])
                start = end
                break
        else:
            return ["[UNK]"]
    return pieces


def _stands_alone(character: str, category: str) -> bool:
    """Whether a character is a word of its own: punctuation, or Chinese."""
    # BERT takes all ASCII signs for punctuation, such as $, which Unicode does not.
    is_ascii_sign = "!" <= character <= "~" and not character.isalnum()
    is_chinese = "\u3400" <= character <= "\u4dbf" or "\u4e00" <= character <= "\u9fff"
    return category[0] == "P" or is_ascii_sign or is_chinese


def _find(data_dir: Path) -> _Form:
    """Returns the release that the folder holds."""
    wanted = " or ".join(f"{form.train} and {form.test}" for form in _FORMS)
    wanted = f"vocab.txt, the vocabulary of an uncased BERT, and {wanted}"
    find_folder(data_dir, f"the folder with {wanted}")
    for form in _FORMS:
        names = ("vocab.txt", form.train, form.test)
        if all((data_dir / name).exists() for name in names):
            return form
    raise FileNotFoundError(f"{data_dir} lacks files of STS-B. It must hold {wanted}.")
