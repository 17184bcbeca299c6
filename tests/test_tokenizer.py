import json

import numpy as np
import pytest
import torch

from gpt.settings import UserError
from gpt.tokenizer import KINDS, ByteTokenizer, CharTokenizer, Tokenizer, restore, tokenizer_class

TEXT = "To be,\nor not to be: π 🙂\r\nthat is the question.\n"


def make(kind: str) -> Tokenizer:
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="extra hf is not installed")
    if kind == "char":
        return CharTokenizer.from_text(TEXT)
    return ByteTokenizer() if kind == "byte" else tokenizer_class(kind).from_parts([TEXT * 9], 300)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_inverts_encoding(kind):
    tokenizer = make(kind)
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == torch.int64
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode_bytes(ids) == TEXT.encode()
    characters, size = tokenizer.lengths[:, ids].sum(dim=1).tolist()
    assert (characters, size) == (len(TEXT), len(TEXT.encode()))


@pytest.mark.parametrize("kind", KINDS)
def test_state_restores_the_tokenizer(kind):
    tokenizer = make(kind)
    restored = restore(json.loads(json.dumps(tokenizer.state)))
    assert type(restored) is type(tokenizer)
    assert restored.state == tokenizer.state
    assert torch.equal(restored.encode(TEXT), tokenizer.encode(TEXT))


@pytest.mark.parametrize(
    ("kind", "units"),
    [("char", ("characters", "character")), ("byte", ("bytes", "byte")), ("bpe", ("tokens", "token"))],
)
def test_tokenizer_names_its_unit(kind, units):
    tokenizer = make(kind)
    assert (tokenizer.unit, tokenizer.loss_unit) == units
    assert tokenizer.kind == tokenizer.state["kind"] == kind


def test_vocabulary_sizes():
    assert len(make("char")) == len(set(TEXT))
    assert len(make("byte")) == 256
    assert make("byte").encode("é").tolist() == [0xC3, 0xA9]


def test_characters_are_collected_from_all_parts():
    assert CharTokenizer.from_parts(["cab", "", "bé", "abz"]).vocabulary == "abczé"


def test_character_ids_are_positions_in_the_vocabulary_and_take_few_bytes():
    tokenizer = CharTokenizer.from_text(TEXT)
    for text in (TEXT, "To be", ""):
        assert tokenizer.ids(text).tolist() == [tokenizer.vocabulary.index(char) for char in text]
        assert tokenizer.ids(text).dtype == (np.uint8 if text.isascii() else np.uint16)
    assert CharTokenizer.from_text("cab").encode("abc").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "state",
    [
        {},
        None,
        [],
        {"kind": "char"},
        {"kind": "char", "vocabulary": 7},
        {"kind": "char", "vocabulary": ["a"]},
        {"kind": "char", "vocabulary": "\ud800"},
        {"kind": "word"},
        {"kind": ["char"]},
    ],
)
def test_damaged_state_is_refused(state):
    with pytest.raises(UserError, match=r"^tokenizer = .*; use a"):
        restore(state)


def test_control_characters_are_remarked_upon():
    assert CharTokenizer.from_text("a\tb\x00\x1b\n").remark == r"it contains control characters, which are kept: '\x00\x1b'"
    assert CharTokenizer.from_text("a\tb\r\n").remark == ""


def test_unknown_characters_are_named():
    with pytest.raises(UserError, match=r"'\?', 'é' not among the 3 characters"):
        CharTokenizer("abc").encode("aé?")
    with pytest.raises(UserError, match=r"'\?' not among the 3 characters"):
        CharTokenizer("abc").encode("a?")
    with pytest.raises(UserError, match=r"'é', '\\ud800' not among"):
        CharTokenizer("abc").encode("aé\ud800")


def test_unknown_characters_can_be_dropped():
    assert CharTokenizer.from_text(TEXT).drop_unknown("To é be?") == "To  be"
    assert ByteTokenizer().drop_unknown("To é be?") == "To é be?"


def test_vocabulary_has_each_character_once():
    with pytest.raises(UserError, match="twice"):
        CharTokenizer("aba")


def test_default_prompt_is_a_line_break_if_the_text_has_one():
    assert CharTokenizer("\nab").default_prompt == "\n"
    assert CharTokenizer("ab").default_prompt == "a"
