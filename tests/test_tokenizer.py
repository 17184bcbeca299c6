import json

import numpy as np
import pytest
import torch

from gpt.errors import UserError
from gpt.tokenizer import KINDS, ByteTokenizer, CharTokenizer, Tokenizer, restore, tokenizer_class

TEXT = "To be,\nor not to be: π 🙂\r\nthat is the question.\n"


def make(kind: str) -> Tokenizer:
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="extra hf is not installed")
    if kind == "char":
        return CharTokenizer.from_text(TEXT)
    return ByteTokenizer() if kind == "byte" else tokenizer_class(kind).from_parts([TEXT * 9], 300)


UNITS = {"char": ("characters", "character"), "byte": ("bytes", "byte"), "bpe": ("tokens", "token")}


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_inverts_encoding_and_the_state_restores_the_tokenizer(kind):
    tokenizer = make(kind)
    assert (tokenizer.unit, tokenizer.loss_unit, tokenizer.kind) == (*UNITS[kind], kind)
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == torch.int64
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode_bytes(ids) == TEXT.encode()
    assert tokenizer.lengths[:, ids].sum(dim=1).tolist() == [len(TEXT), len(TEXT.encode())]
    restored = restore(json.loads(json.dumps(tokenizer.state)))
    assert type(restored) is type(tokenizer)
    assert restored.state == tokenizer.state
    assert torch.equal(restored.encode(TEXT), ids)


def test_character_ids_are_positions_in_the_vocabulary_and_take_few_bytes():
    tokenizer = CharTokenizer.from_text(TEXT)
    for text in (TEXT, "To be", ""):
        assert tokenizer.ids(text).tolist() == [tokenizer.vocabulary.index(char) for char in text]
        assert tokenizer.ids(text).dtype == np.uint8
    assert CharTokenizer.fit(["cab", "", "bé", "abz"]).vocabulary == "abczé"
    assert CharTokenizer.from_text("cab").encode("abc").tolist() == [0, 1, 2]
    assert (len(ByteTokenizer()), ByteTokenizer().encode("é").tolist()) == (256, [0xC3, 0xA9])


DAMAGED = [{}, None, [], {"kind": ["char"]}, {"kind": "char"}]
DAMAGED += [{"kind": "char", "vocabulary": vocabulary} for vocabulary in (7, "\ud800")]


@pytest.mark.parametrize("state", DAMAGED)
def test_damaged_state_is_refused(state):
    with pytest.raises(UserError, match=r"^tokenizer = .*; use a"):
        restore(state)


def test_unknown_characters_are_named_and_can_be_dropped():
    for text, unknown in {"aé?": r"'\?', 'é'", "a?": r"'\?'", "aé\ud800": r"'é', '\\ud800'"}.items():
        with pytest.raises(UserError, match=rf"{unknown} not among the 3 characters"):
            CharTokenizer("abc").encode(text)
    with pytest.raises(UserError, match="twice"):
        CharTokenizer("aba")
    assert CharTokenizer("abc", drops_unknown=True).encode("aéc?").tolist() == [0, 2]
    assert CharTokenizer.from_text(TEXT).drop_unknown("To é be?") == "To  be"
    assert ByteTokenizer().drop_unknown("To é be?") == "To é be?"


def test_default_prompt_is_a_line_break_if_the_text_has_one():
    assert [CharTokenizer(text).default_prompt for text in ("\nab", "ab")] == ["\n", "a"]
