"""STS-B: sentence pairs with a similarity, as tokens for BERT."""

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.files import release_error
from experiments.data.sentences import HIGHEST, Pairs, make_pairs, vocabulary

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_LONGEST_WORD = 100  # characters; a longer one is [UNK], as in BERT
# What the generated stand-in has, unless told otherwise.
_GENERATED_TRAIN, _GENERATED_TEST = 1_024, 256


class _Form(NamedTuple):
    """One of the two releases. The scores of GLUE's test set are secret."""

    release: str
    train: str
    test: str
    has_header: bool
    columns: tuple[int, int, int]  # of the score and the two sentences


_FORMS = (
    _Form("GLUE's STS-B.zip", "train.tsv", "dev.tsv", True, (9, 7, 8)),
    _Form("Stsbenchmark.tar.gz", "sts-train.csv", "sts-test.csv", False, (4, 5, 6)),
)


class Split(NamedTuple):
    """Pairs as `[CLS] first [SEP] second [SEP]`, then `[PAD]`.

    tokens: int32 [num, length]. segments: int32 [num, length], 1 for the second
    sentence. mask: bool [num, length], False for `[PAD]`. scores: float32 [num], the
    similarity from 0 to 1: a fifth of the release's.
    """

    tokens: np.ndarray
    segments: np.ndarray
    mask: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Sts:
    """Two splits, the size of the vocabulary and, in words, where the pairs come from.

    A pair longer than the length was cut, the longer sentence first.
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

    Args:
        data_dir: a folder with `vocab.txt`, the vocabulary of an uncased BERT with one
            token a line, and either GLUE's `train.tsv` and `dev.tsv`, the latter for
            testing, or the original `sts-train.csv` and `sts-test.csv`. None generates
            pairs of a toy language, see `sentences.make_pairs`.
        length: tokens of a pair, with the three special ones and padding.
        num_train: the number of train pairs, the first ones. None takes all, or
            generates 1,024.
        num_test: likewise, or generates 256.
        seed: picks the generated pairs.

    Returns:
        The splits. `source` names the pairs for a table or a log.

    Raises:
        FileNotFoundError: if `data_dir` or one of its files is missing.
        ValueError: if a file is damaged, or a number is too small.

    References:
        Cer, Diab, Agirre, Lopez-Gazpio, Specia, "SemEval-2017 task 1: semantic textual
        similarity", 2017, https://arxiv.org/abs/1708.00055.
    """
    for name, count, least in (
        ("length", length, 5),
        ("num_train", num_train, 1),
        ("num_test", num_test, 1),
    ):
        if count is not None and count < least:
            raise ValueError(f"`{name}` must be at least {least}, got {count}.")
    if data_dir is None:
        sizes = (num_train or _GENERATED_TRAIN, num_test or _GENERATED_TEST)
        streams = np.random.SeedSequence(seed).spawn(2)
        parts = [
            make_pairs(size, np.random.default_rng(stream))
            for size, stream in zip(sizes, streams, strict=True)
        ]
        words = {token: place for place, token in enumerate(vocabulary())}
        origin = "generated sentence pairs, not STS-B,"
    else:
        form, folder = _find(data_dir)
        words = read_vocabulary(folder / "vocab.txt")
        parts = [
            _first(read_pairs(folder / name, form), count)
            for name, count in ((form.train, num_train), (form.test, num_test))
        ]
        origin = f"STS-B files {form.train} and {form.test} in {folder}"
    train, test = (encode_pairs(part, words, length) for part in parts)
    source = f"{origin} ({len(train.scores):,} train / {len(test.scores):,} test)"
    return Sts(train, test, len(words), source)


def read_vocabulary(path: Path) -> dict[str, int]:
    """Reads a WordPiece vocabulary, from token to index.

    Raises:
        ValueError: if the file is not UTF-8, lacks a special token, or has a token
            twice.
    """
    tokens = _read_text(path, "a BERT release").rstrip("\n").split("\n")
    words = {token.rstrip("\r"): place for place, token in enumerate(tokens)}
    missing = [token for token in _SPECIAL if token not in words]
    if missing:
        found = f"has no {', '.join(missing)}"
        raise release_error(path, found, "one token a line", "a BERT release")
    if len(words) < len(tokens):
        found = f"has {len(tokens) - len(words)} lines that repeat a token"
        raise release_error(path, found, "each token once", "a BERT release")
    return words


def read_pairs(path: Path, form: _Form = _FORMS[0]) -> Pairs:
    """Reads the pairs of one file, tab-separated and without quotes.

    Raises:
        ValueError: if a line has too few fields or a score that is none.
    """
    text = _read_text(path, form.release)
    # Not `splitlines`: sentences hold other characters that end a line for Python.
    lines = [line.rstrip("\r") for line in text.split("\n")]
    first, second, scores = [], [], []
    for number, line in enumerate(lines, 1):
        if not line or (form.has_header and number == 1):
            continue
        fields = line.split("\t")
        expected = f"{max(form.columns) + 1} fields with tabs between"
        if len(fields) <= max(form.columns):
            found = f"has {len(fields)} fields in line {number}"
            raise release_error(path, found, expected, form.release)
        score, one, other = (fields[column] for column in form.columns)
        scores.append(_parse_score(path, number, score, form.release))
        first.append(one)
        second.append(other)
    if not scores:
        raise release_error(path, "holds no pairs", "sentence pairs", form.release)
    return Pairs(first, second, np.array(scores, np.float32))


def word_pieces(sentence: str, words: dict[str, int]) -> list[str]:
    """Cuts a sentence into the tokens of an uncased BERT.

    Lower case without accents; words end at blanks and around punctuation and Chinese
    characters; a word is the longest token that it begins with, then the longest
    `##token` that goes on, or `[UNK]` if that does not end.

    Args:
        sentence: the sentence.
        words: the vocabulary, from token to index.

    Returns:
        The tokens.

    Examples:
        >>> words = dict.fromkeys(["un", "##able", "##aff", "cafe", "!"], 0)
        >>> word_pieces("Unaffable  CAFÉ!?", words)
        ['un', '##aff', '##able', 'cafe', '!', '[UNK]']
    """
    plain = unicodedata.normalize("NFD", sentence.lower())
    spaced = []
    for character in plain:
        category = unicodedata.category(character)
        if category == "Mn" or character == "\ufffd":
            continue
        if character.isspace():
            spaced.append(" ")
        elif category[0] == "C":
            continue
        elif _stands_alone(character, category):
            spaced.append(f" {character} ")
        else:
            spaced.append(character)
    pieces = []
    for word in "".join(spaced).split():
        pieces += _cut(word, words)
    return pieces


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
    """Cuts one word, greedily."""
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
    is_chinese = (
        0x4E00 <= ord(character) <= 0x9FFF or 0x3400 <= ord(character) <= 0x4DBF
    )
    return category[0] == "P" or is_ascii_sign or is_chinese


def _parse_score(path: Path, number: int, text: str, release: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= HIGHEST:  # a NaN is refused too
        found = f"has the score {text[:40]!r} in line {number}"
        raise release_error(path, found, "a number from 0 to 5", release)
    return score


def _first(pairs: Pairs, count: int | None) -> Pairs:
    return Pairs(pairs.first[:count], pairs.second[:count], pairs.scores[:count])


def _read_text(path: Path, release: str) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"is not UTF-8 at byte {error.start}"
        raise release_error(path, found, "a text file", release) from error


def _find(data_dir: Path) -> tuple[_Form, Path]:
    """Returns which release the folder holds."""
    wanted = " or ".join(f"{form.train} and {form.test}" for form in _FORMS)
    if not data_dir.is_dir():
        raise FileNotFoundError(
            f"`data_dir` must be a folder, got {data_dir}. It must hold vocab.txt, and "
            f"{wanted}."
        )
    for form in _FORMS:
        names = ("vocab.txt", form.train, form.test)
        missing = [name for name in names if not (data_dir / name).is_file()]
        if not missing:
            return form, data_dir
    raise FileNotFoundError(
        f"{data_dir} lacks files of STS-B. It must hold vocab.txt, the vocabulary of "
        f"an uncased BERT, and {wanted}."
    )
