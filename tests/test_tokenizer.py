import pytest
import torch

from gpt.settings import UserError
from gpt.tokenizer import CharTokenizer


def test_round_trip():
    text = "To be,\nor not: π 🙂\r\n"
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == torch.int64
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == len(set(text))


def test_ids_follow_code_points():
    assert CharTokenizer.from_text("cab").encode("abc").tolist() == [0, 1, 2]


def test_unknown_characters_are_named():
    with pytest.raises(UserError, match=r"'\?', 'é' not among the 3 characters"):
        CharTokenizer("abc").encode("aé?")


def test_a_vocabulary_has_each_character_once():
    with pytest.raises(UserError, match="twice"):
        CharTokenizer("aba")


def test_start():
    assert CharTokenizer("\nab").start == "\n"
    assert CharTokenizer("ab").start == "a"
