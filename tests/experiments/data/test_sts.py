"""STS-B: both releases, WordPiece, damage, and the generated pairs."""

import numpy as np
import pytest

from experiments.data.sentences import make_pairs, vocabulary
from experiments.data.sts import Pairs, encode_pairs, load_sts, word_pieces

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "man", "play", "##s", "##ing", "the"]
WORDS += ["guitar", ".", "un", "##aff", "##able", "want", "##ed", "cafe", "中", ","]
INDEX = {word: place for place, word in enumerate(WORDS)}
TRAIN = [("5.000", "A man plays.", "A man playing."), ("0.5", "the guitar", 'a "man')]
TEST = [("3.25", "café", "the guitar")]


def write(folder, form):
    """Writes a release in the form of GLUE or of the original."""
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    for split, pairs in (("train", TRAIN), ("test", TEST)):
        if form == "glue":
            name = "train.tsv" if split == "train" else "dev.tsv"
            lines = ["index\tgenre\tfilename\tyear\told\ts1\ts2\tsentence1\tsentence2"]
            lines[0] += "\tscore"
            for number, (score, one, other) in enumerate(pairs):
                start = f"{number}\tmain\tMSR\t2012\t0001\tnone\tnone"
                lines.append(f"{start}\t{one}\t{other}\t{score}")
        else:
            name = f"sts-{split}.csv"
            lines = [f"main\tMSR\t2012\t0001\t{s}\t{a}\t{b}\tmore" for s, a, b in pairs]
        (folder / name).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("form", ["glue", "original"])
def test_each_release_is_read(tmp_path, form):
    """Tokens, segments, mask and a fifth of the scores, quotes being characters."""
    write(tmp_path, form)
    data = load_sts(tmp_path, length=14)
    sentences = [["a", "man", "play", "##s", "."], ["a", "man", "play", "##ing", "."]]
    expected = ["[CLS]", *sentences[0], "[SEP]", *sentences[1], "[SEP]", "[PAD]"]
    found = [WORDS[token] for token in data.train.tokens[0]]
    assert found == expected
    np.testing.assert_array_equal(data.train.segments[0], [0] * 7 + [1] * 6 + [0])
    np.testing.assert_array_equal(data.train.mask[0], [True] * 13 + [False])
    np.testing.assert_allclose(data.train.scores, [1, 0.1])
    np.testing.assert_allclose(data.test.scores, [0.65])
    assert data.train.tokens[1, 5] == INDEX["[UNK]"]  # the quote
    assert data.vocabulary_size == len(WORDS)
    assert str(tmp_path) in data.source
    assert "(2 train / 1 test)" in data.source


def test_number_of_pairs(tmp_path):
    write(tmp_path, "glue")
    assert len(load_sts(tmp_path, num_train=1).train.scores) == 1


PIECES = {
    "unaffable": ["un", "##aff", "##able"],  # the example of BERT's code
    "unwanted": ["[UNK]"],
    "Café,the": ["cafe", ",", "the"],
    "a中a": ["a", "中", "a"],
    "man\u0000man\u00a0man": ["[UNK]", "man"],
    "a$a": ["a", "[UNK]", "a"],
    "x" * 101: ["[UNK]"],
    " \t\n": [],
}


@pytest.mark.parametrize("text", PIECES)
def test_word_pieces(text):
    assert word_pieces(text, INDEX) == PIECES[text]


def test_long_pair_loses_the_end_of_its_longer_sentence():
    pairs = Pairs(["a a a a a a"], ["man man"], np.zeros(1, np.float32))
    split = encode_pairs(pairs, INDEX, 8)
    expected = ["[CLS]", "a", "a", "a", "[SEP]", "man", "man", "[SEP]"]
    np.testing.assert_array_equal(split.tokens[0], [INDEX[t] for t in expected])
    assert split.mask.all()


def check_line(error, *words):
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


DAMAGE = {
    "empty": (lambda data: b"", "holds no pairs"),
    "cut": (lambda data: data[:-12], "fields in line 3"),
    "score": (lambda data: data.replace(b"5.000", b"five"), "score 'five' in line 2"),
    "range": (lambda data: data.replace(b"5.000", b"5.001"), "a number from 0 to 5"),
    "nan": (lambda data: data.replace(b"5.000", b"nan"), "score 'nan'"),
    "bytes": (lambda data: data.replace(b"man", b"\xff"), "not UTF-8 at byte"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_pairs_are_refused(tmp_path, case):
    write(tmp_path, "glue")
    path = tmp_path / "train.tsv"
    damage, message = DAMAGE[case]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load_sts(tmp_path)
    check_line(error, str(path), "GLUE's STS-B.zip")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(WORDS[1:], r"has no \[PAD\]"), ([*WORDS, "a"], "1 lines that repeat a token")],
)
def test_damaged_vocabulary_is_refused(tmp_path, tokens, message):
    write(tmp_path, "glue")
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    with pytest.raises(ValueError, match=message) as error:
        load_sts(tmp_path)
    check_line(error, str(tmp_path / "vocab.txt"))


def test_missing_folder_or_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a folder, got"):
        load_sts(tmp_path / "absent")
    write(tmp_path, "glue")
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt.* or sts-train\.csv"):
        load_sts(tmp_path)


@pytest.mark.parametrize(
    ("name", "least"), [("length", 5), ("num_train", 1), ("num_test", 1)]
)
def test_numbers_are_checked(name, least):
    with pytest.raises(ValueError, match=f"`{name}` must be at least {least}, got 0"):
        load_sts(**{name: 0})


def test_stand_in_is_named_and_depends_on_the_seed_only():
    first, again, other = (
        load_sts(num_train=40, num_test=10, seed=seed) for seed in (0, 0, 1)
    )
    assert "generated" in first.source
    assert "not STS-B" in first.source
    np.testing.assert_array_equal(first.train.tokens, again.train.tokens)
    assert not np.array_equal(first.train.tokens, other.train.tokens)
    # Every word is in the vocabulary, and no sentence is cut.
    assert not np.any(first.train.tokens == vocabulary().index("[UNK]"))
    assert not first.train.mask.all(axis=1).any()
    assert first.vocabulary_size == len(vocabulary())


def test_similarity_is_what_the_sentences_share():
    """Equal bags of words have score 5; a shared slot counts 1, or 1/2 as a synonym."""
    pairs = make_pairs(2_000, np.random.default_rng(0))
    few = {"a", "the", "in"}
    common = np.array(
        [
            len((set(one.split()) & set(other.split())) - few)
            for one, other in zip(pairs.first, pairs.second, strict=True)
        ]
    )
    # What remains beside the common words is half a point for each synonym.
    rest = pairs.scores - common
    assert rest.min() >= 0
    np.testing.assert_array_equal(rest % 0.5, 0)
    assert np.all((pairs.scores == 5) == (common == 5))
    shared = np.array([np.mean(pairs.scores < 0.25), np.mean(pairs.scores == 5)])
    assert shared[0] == pytest.approx(1 / 6, abs=0.04)
    # Words chosen alike in all slots: 0.6, 0.8, 0.7, 0.8 and 0.9 of the time.
    assert shared[1] == pytest.approx(0.6 * 0.8 * 0.7 * 0.8 * 0.9 / 6, abs=0.015)
