import json
import random

import numpy as np
import pytest
import torch

from gpt.settings import UserError
from gpt.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, restore

TEXT = "To be,\nor not to be: π 🙂\r\nthat is the question.\n"


def make(kind: str):
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="extra hf is not installed")
        return BPETokenizer.from_parts([TEXT * 9], vocab_size=300)
    return ByteTokenizer() if kind == "byte" else CharTokenizer.from_text(TEXT)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_round_trip(kind):
    tokenizer = make(kind)
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == torch.int64
    assert tokenizer.decode(ids) == TEXT
    characters, size = tokenizer.lengths[:, ids].sum(dim=1).tolist()
    assert (characters, size) == (len(TEXT), len(TEXT.encode()))
    again = restore(json.loads(json.dumps(tokenizer.state)))
    assert again.state == tokenizer.state
    assert torch.equal(again.encode(TEXT), ids)


def test_what_each_kind_has():
    assert len(make("char")) == len(set(TEXT))
    assert make("byte").encode("é").tolist() == [0xC3, 0xA9]
    bpe = make("bpe")
    assert 256 < len(bpe) <= 300
    assert bpe.decode(bpe.encode("ж\x00")) == "ж\x00"  # it has never seen
    assert len(bpe.encode(TEXT)) < len(TEXT)
    assert b" be" in bpe.pieces


def test_byte_pairs_do_not_depend_on_chance():
    pytest.importorskip("tokenizers", reason="extra hf is not installed")
    text = "".join(random.Random(0).choices("ab \n", k=5000))
    made = [BPETokenizer.from_parts([text], vocab_size=400).state for _ in range(3)]
    assert made[0] == made[1] == made[2]


def test_characters_are_found_in_parts():
    assert CharTokenizer.from_parts(["cab", "", "bé", "abz"]).vocabulary == "abczé"


def test_ids_take_few_bytes_and_compare_with_a_slow_way():
    tokenizer = make("char")
    for text in (TEXT, "To be", ""):
        assert tokenizer.ids(text).tolist() == [tokenizer.vocabulary.index(char) for char in text]
        assert tokenizer.ids(text).dtype == (np.uint8 if text.isascii() else np.uint16)


@pytest.mark.parametrize("state", [{}, None, {"kind": "char"}, {"kind": "char", "vocabulary": 7}, {"kind": "word"}])
def test_a_state_that_is_none_is_refused(state):
    with pytest.raises(UserError, match="tokenizer = "):
        restore(state)


def test_a_damaged_state_is_refused():
    make("bpe")
    with pytest.raises(UserError, match="tokenizer = bpe: damaged"):
        restore({"kind": "bpe", "vocabulary": ["a", "π"], "merges": []})


def test_control_characters_are_found():
    assert CharTokenizer.from_text("a\tb\x00\x1b\n").control == "\x00\x1b"


def test_ids_follow_code_points():
    assert CharTokenizer.from_text("cab").encode("abc").tolist() == [0, 1, 2]


def test_unknown_characters_are_named():
    with pytest.raises(UserError, match=r"'\?', 'é' not among the 3 characters"):
        CharTokenizer("abc").encode("aé?")
    with pytest.raises(UserError, match=r"'\?' not among the 3 characters"):
        CharTokenizer("abc").encode("a?")
    with pytest.raises(UserError, match=r"'é', '\\ud800' not among"):
        CharTokenizer("abc").encode("aé\ud800")
    assert make("char").known("To é be?") == "To  be"
    assert make("byte").known("To é be?") == "To é be?"


def test_a_vocabulary_has_each_character_once():
    with pytest.raises(UserError, match="twice"):
        CharTokenizer("aba")


def test_start():
    assert CharTokenizer("\nab").start == "\n"
    assert CharTokenizer("ab").start == "a"
