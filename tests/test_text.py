import hashlib
from importlib import metadata
from pathlib import Path

import pytest
import torch

from gpt import text
from gpt.errors import UserError
from gpt.text import Text, find_files, tiny_shakespeare


def test_wheel_has_the_right_text(tmp_path):
    shakespeare = tiny_shakespeare(tmp_path)
    assert (len(shakespeare), len(set(shakespeare)), shakespeare[:14]) == (1_115_394, 65, "First Citizen:")
    assert hashlib.sha256(shakespeare.encode()).hexdigest() == text.SHA256
    assert not list(tmp_path.iterdir())  # no copy is made of what the wheel has


def no_wheel(name):
    raise metadata.PackageNotFoundError(name)


def test_text_is_downloaded_once_if_there_is_no_wheel(tmp_path, monkeypatch):
    wheel = Path(str(metadata.distribution(text.WHEEL).locate_file(text.WHEEL_FILE)))
    monkeypatch.setattr(metadata, "distribution", no_wheel)
    monkeypatch.setattr(text, "URL", wheel.as_uri())
    first = tiny_shakespeare(tmp_path / "data")
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloaded again"))
    assert tiny_shakespeare(tmp_path / "data") == first


def test_another_text_is_refused_and_not_kept(tmp_path, monkeypatch):
    other = tmp_path / "tiny_shakespeare.txt"
    other.write_text("To be")
    with pytest.raises(UserError, match=r"no Tiny Shakespeare in .*SHA-256 differs"):
        tiny_shakespeare(tmp_path)
    monkeypatch.setattr(metadata, "distribution", no_wheel)
    monkeypatch.setattr(text, "URL", other.as_uri())
    with pytest.raises(UserError, match=r"no Tiny Shakespeare in .*invalid hash value"):
        tiny_shakespeare(tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_line_endings_stay_and_the_byte_order_mark_goes(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n\xef\xbb\xbf")
    assert "".join(Text([path])) == "a\r\nb\rc\n\ufeff"
    assert b"".join(Text([path], raw=True)) == path.read_bytes()


@pytest.mark.parametrize("part", [1, 3, 10**4])
def test_text_does_not_depend_on_the_size_of_parts(part, tmp_path, monkeypatch):
    whole = "To be, π or 🙂 not\r\n" * 2000
    for name, content in (("b.txt", whole[:20]), ("a.txt", whole[20:])):
        (tmp_path / name).write_bytes(content.encode())
    monkeypatch.setattr(text, "PART", part)
    found, expected = Text(find_files(str(tmp_path))), whole[20:] + whole[:20]
    assert max(map(len, found)) == min(part, len(whole) - 20)
    assert "".join(found) == expected
    assert (len(found), found.sha256) == (len(whole), hashlib.sha256(expected.encode()).hexdigest())
    assert len(Text(found.files, raw=True)) == len(whole.encode())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with files at several depths, some of them hidden."""
    names = "a.txt", "b.md", "inner/c.txt", "inner/deep/d.txt", ".hidden.txt", ".git/e.txt", "odd [1]/f.txt"
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def names(tree: Path, path: str) -> list[str]:
    return [str(file.relative_to(tree)) for file in find_files(str(tree / path))]


ALL = ["a.txt", "b.md", "inner/c.txt", "inner/deep/d.txt", "odd [1]/f.txt"]


@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("a.txt", ["a.txt"]),
        (".hidden.txt", [".hidden.txt"]),  # asked for by name
        ("", ALL),
        ("odd [1]", ["odd [1]/f.txt"]),
        (".git", [".git/e.txt"]),
        (".git/*", [".git/e.txt"]),
        ("**", ALL),
        ("**/*", ALL),
        ("**/**/*", ALL),
        ("*.txt", ["a.txt"]),
        ("?.[tm]*", ["a.txt", "b.md"]),
        ("**/*.txt", ["a.txt", "inner/c.txt", "inner/deep/d.txt", "odd [1]/f.txt"]),
        ("inner/**/*.txt", ["inner/c.txt", "inner/deep/d.txt"]),
        ("inner/**", ["inner/c.txt", "inner/deep/d.txt"]),
        ("*/c.txt", ["inner/c.txt"]),
        ("**/deep/*", ["inner/deep/d.txt"]),
    ],
)
def test_path_is_a_file_a_folder_or_a_pattern(tree, path, files):
    assert names(tree, path) == files


def test_relative_pattern(tree, monkeypatch):
    monkeypatch.chdir(tree / "inner")
    for path, files in (("*.txt", ["c.txt"]), ("../*.md", ["../b.md"]), (".", ["c.txt", "deep/d.txt"])):
        assert [str(file) for file in find_files(path)] == files


@pytest.mark.parametrize("path", ["", "**", "**/*", "**/**/*"])
def test_loops_of_links_end_and_a_file_is_listed_once(tree, path):
    (tree / "inner" / "loop").symlink_to(tree)
    for name, target in (
        ("y", "."),
        ("z", "."),
        ("z.txt", "a.txt"),
        ("gone.txt", "no"),
        ("me.txt", "me.txt"),
    ):
        (tree / name).symlink_to(target)
    assert names(tree, path) == ALL


@pytest.mark.parametrize("path", ["*.csv", "missing.txt", "x" * 300, "x" * 300 + "/*", "a.txt/b", "[", "q**"])
def test_missing_file_is_refused(tree, path, monkeypatch):
    monkeypatch.chdir(tree)
    with pytest.raises(UserError, match="no such file; give") as error:
        find_files(path)
    assert str(error.value).startswith(f"data.path = {path}: ")


def test_what_has_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="a folder without files"):
        find_files(str(tmp_path))
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "gone.txt", "No such file")):
        with pytest.raises(UserError, match=f"{why}.*; give a file that can be read"):
            Text([path])
    (tmp_path / "empty.txt").touch()
    for raw in (False, True):
        with pytest.raises(UserError, match="0 characters"):
            Text(find_files(str(tmp_path)), raw)


@pytest.mark.parametrize("before", [0, 8190, 10**5])  # Python decodes 8 KiB at a time, and more if asked to
def test_first_wrong_byte_is_named_wherever_it_is(before, tmp_path, monkeypatch):
    path = tmp_path / "own.txt"
    wrong = {b"abc\xc3\xa9\xe9 and": 5, b"abcd\xf0\x9f\x99": 4, b"\xe9 and": 0}
    for part in (3, 5000, 10**6):
        monkeypatch.setattr(text, "PART", part)
        for mark in (b"", b"\xef\xbb\xbf"):
            for content, where in wrong.items():
                path.write_bytes(mark + b"x" * before + content)
                where += len(mark) + before
                with pytest.raises(UserError, match=rf"not UTF-8 at byte {where}; .*iconv .* own\.txt >"):
                    Text([path])
