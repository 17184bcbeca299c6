"""Byte pairs: any text can be encoded, and learning them takes no longer than it must."""

import random
import re
import string
import sys
import time
from pathlib import Path

import pytest

from gpt.config import DataConfig
from gpt.errors import UserError
from gpt.interop import bpe
from gpt.interop.bpe import BPETokenizer, byte_letters
from gpt.text import Text, tiny_shakespeare
from gpt.tokenizer import restore

pytest.importorskip("tokenizers", reason="extra hf is not installed")

TEXT = "To be,\nor not to be: π 🙂\r\nthat is the question.\n"


def test_frequent_pairs_become_pieces_and_any_text_can_be_encoded():
    tokenizer = BPETokenizer.from_parts([TEXT * 9], vocab_size=300)
    assert 256 < len(tokenizer) <= 300
    assert b" be" in tokenizer.pieces
    assert len(tokenizer.encode(TEXT)) < len(TEXT)
    assert tokenizer.decode(tokenizer.encode("ж\x00")) == "ж\x00"  # neither of them is in the text
    assert BPETokenizer.from_parts([TEXT * 9], vocab_size=300).state == tokenizer.state


@pytest.fixture
def text(tmp_path: Path) -> Text:
    (tmp_path / "text.txt").write_text("abababxyxyxyxyxyxyxy")
    return Text(DataConfig(path=str(tmp_path / "text.txt"), val_fraction=0.7))


def test_only_the_training_part_is_counted_and_too_few_pieces_are_remarked_upon(text):
    assert BPETokenizer.fit(text, vocab_size=258).pieces[256:] == [b"ab", b"abab"]
    found = BPETokenizer.fit(text, 300)
    assert found.remark == f"only {len(found)} pieces were found in it, not data.bpe_vocab_size = 300"
    assert BPETokenizer.fit(text, 257).remark == ""


@pytest.mark.parametrize("alphabet", ["a", string.ascii_letters, " ", " \t\u2003", "!?-"])
def test_text_without_words_takes_a_second(alphabet):
    text = "".join(random.Random(0).choices(alphabet, k=400_000))
    start = time.process_time()
    tokenizer = BPETokenizer.from_parts([text], vocab_size=512)
    ids = tokenizer.encode(text)
    assert time.process_time() - start < 10  # about one on an idle machine; minutes without cuts
    assert tokenizer.decode(ids) == text


def test_ordinary_text_is_never_cut(monkeypatch):
    text = tiny_shakespeare(Path("none"))
    usual = BPETokenizer.from_parts([text], vocab_size=300).state
    monkeypatch.setattr(bpe, "LONG_RUN", re.compile("(?!)"))
    assert BPETokenizer.from_parts([text], vocab_size=300).state == usual


DAMAGED = [(["ab", "ab"], []), ([""], []), ([], [["a", "b"]]), (["a b"], [])]


@pytest.mark.parametrize(("more", "merges"), DAMAGED)
def test_damaged_state_is_refused(more, merges):
    with pytest.raises(UserError, match="tokenizer = bpe: damaged"):
        restore({"kind": "bpe", "vocabulary": [*byte_letters(), *more], "merges": merges})


def test_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"tokenizers = \(missing\): not installed; pip install"):
        BPETokenizer.from_parts([TEXT], 300)
