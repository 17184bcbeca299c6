"""Files of one's own: which of them a path means, what is read of them, and what is refused."""

import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
from conftest import read_last, read_result
from gpt import sources, text
from gpt.config import DataConfig
from gpt.errors import UserError
from gpt.run import read_config
from gpt.sources import Documents, find_files
from gpt.text import Text, tiny_shakespeare


@pytest.fixture
def tree(tmp_path: Path, monkeypatch) -> Path:
    """A folder with files at several depths, some of them hidden. It is the current one."""
    names = "a.txt", "b.md", "inner/c.txt", "inner/deep/d.txt", ".hidden.txt", ".git/e.txt", "odd [1]/f.txt"
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


ALL = ["a.txt", "b.md", "inner/c.txt", "inner/deep/d.txt", "odd [1]/f.txt"]
PLACES = {  # the files that a path means, from where the user stands
    "a.txt": ["a.txt"],
    ".hidden.txt": [".hidden.txt"],  # asked for by name
    ".": ALL,
    "odd [1]": ["odd [1]/f.txt"],
    ".git": [".git/e.txt"],
    ".git/*": [".git/e.txt"],
    "**": ALL,
    "**/*": ALL,
    "**/**/*": ALL,
    "*.txt": ["a.txt"],
    "?.[tm]*": ["a.txt", "b.md"],
    "**/*.txt": ["a.txt", "inner/c.txt", "inner/deep/d.txt", "odd [1]/f.txt"],
    "inner/**/*.txt": ["inner/c.txt", "inner/deep/d.txt"],
    "inner/**": ["inner/c.txt", "inner/deep/d.txt"],
    "*/c.txt": ["inner/c.txt"],
    "**/deep/*": ["inner/deep/d.txt"],
    "inner/../*.md": ["inner/../b.md"],
    ("b.md", "a.txt", "*.txt"): ["b.md", "a.txt"],  # in the order of the list, and each once
}


@pytest.mark.parametrize(("place", "files"), PLACES.items())
def test_path_is_a_file_a_folder_a_pattern_or_a_list_of_them(tree, place, files):
    assert [str(file) for file in find_files(place if isinstance(place, str) else list(place))] == files
    if isinstance(place, str):
        absolute = find_files(str(tree / place))
        assert [str(file.relative_to(tree)) for file in absolute] == files


def test_loops_of_links_end_and_a_file_is_listed_once(tree):
    (tree / "inner" / "loop").symlink_to(tree)
    links = {"y": ".", "z": ".", "z.txt": "a.txt", "gone.txt": "no", "me.txt": "me.txt"}
    for name, target in links.items():
        (tree / name).symlink_to(target)
    for path in (".", "**", "**/*", "**/**/*"):
        assert [str(file) for file in find_files(path)] == ALL


@pytest.mark.parametrize("path", ["*.csv", "missing.txt", "x" * 300, "x" * 300 + "/*", "a.txt/b", "[", "q**"])
def test_missing_file_is_refused(tree, path):
    for places in (path, ["a.txt", path]):
        with pytest.raises(UserError, match="no such file; give") as error:
            find_files(places, "data.val_path")
        assert str(error.value).startswith(f"data.val_path = {path}: ")
    (tree / "none").mkdir()
    with pytest.raises(UserError, match="a folder without files"):
        find_files("none")


def read(*files: str, raw: bool = False, **settings) -> str | bytes:
    parts = list(Documents([Path(file) for file in files], DataConfig(**settings), raw))
    return (b"" if raw else "").join(parts)


def test_files_are_in_natural_order_and_do_not_run_into_each_other(tree):
    (tree / "book").mkdir()
    for number, content in {1: "one", 2: "two\n", 10: "ten\r\n", 11: "", 12: "twelve"}.items():
        (tree / f"book/part{number}.txt").write_bytes(content.encode())
    files = [str(path) for path in find_files("book")]
    assert read(*files) == "one\ntwo\nten\r\ntwelve"
    assert read(*files, raw=True) == b"one\ntwo\nten\r\ntwelve"
    assert read(*files, separator="<|end|>") == "one<|end|>two\n<|end|>ten\r\n<|end|>twelve"
    assert read(*files, separator="") == "onetwo\nten\r\ntwelve"


@pytest.mark.parametrize("part", [1, 3, 10**4])
def test_line_endings_stay_whatever_the_size_of_parts_and_the_byte_order_mark_goes(part, tree, monkeypatch):
    content = "a\r\nb\rc\n\ufeffTo be, π or 🙂 not\r\n" * 500
    (tree / "own.txt").write_bytes(b"\xef\xbb\xbf" + content.encode())
    monkeypatch.setattr(sources, "PART", part)
    assert max(map(len, Documents([Path("own.txt")], DataConfig()))) == min(part, len(content))
    assert read("own.txt") == content
    assert read("own.txt", raw=True) == Path("own.txt").read_bytes()


TEXTS = ["To be,\nor not", "", None, 'that "is"\n', "7 é"]


def write_table(path: Path) -> None:
    """The column `text` with TEXTS, and one with numbers before it."""
    rows = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "text"], delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.mark.parametrize("kind", sources.TABLES)
def test_tables_are_read_by_the_name_of_a_column(kind, tree, monkeypatch):
    name = f"rows{kind}"
    write_table(Path(name))
    monkeypatch.setattr(sources, "ROWS", 2)
    assert read(name, column="text") == 'To be,\nor not\nthat "is"\n7 é\n'
    assert read(name, name, column="id", separator="|") == "0|1|2|3|4|" * 2
    assert read(name, column="text", raw=True).decode() == read(name, column="text")
    assert read(name, raw=True) == Path(name).read_bytes()
    for column in ("txt", None) if kind in sources.TABLES[:3] else ("txt",):
        with pytest.raises(UserError, match=rf"^data\.column = {column or 'null'}: {name} has .* id, text$"):
            read(name, column=column)


def test_what_is_no_table_is_refused_by_name(tree, monkeypatch):
    Path("rows.jsonl").write_text('{"text": "a"}\n{"text": \n')
    Path("numbers.jsonl").write_text("1\n2\n")
    Path("rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # as if it were not installed
    for name, why in {
        "rows.jsonl": r'not the rows of a \.jsonl file \({"text":\); correct it',
        "numbers.jsonl": r"not the rows of a \.jsonl file",
        "rows.parquet": "pyarrow, which is not installed; pip install pyarrow",
        "a.txt": r"data\.column is for \.jsonl, ",
        "gone.txt": "No such file.*; give a file that can be read",
        "inner": "Is a directory",
    }.items():
        with pytest.raises(UserError, match=rf"^data\.path = {name}: .*{why}"):
            read(name, column="text")


VERSES = {  # in two lines, by which an encoding can be told
    "Über allen Gipfeln ist Ruh,\nin allen Wipfeln spürest du.\n": "latin1 utf-16 utf-16-le",
    "Dès l\N{RIGHT SINGLE QUOTATION MARK}aube, où blanchit la forêt,\nje partirai ; là-bas.\n": "utf-16-be",
    "Demain, dès l'aube, à l'heure où blanchit la campagne,\nje partirai. Là-bas, là-bas !\n": "cp1252",
    "Я помню чудное мгновенье,\nявилась ты, как мимолётное виденье.\n": "cp1251 koi8-r",  # noqa: RUF001
    "床前明月光疑是地上霜。\n举头望明月低头思故乡。\n": "gb18030",
    "古池や蛙飛びこむ水の音。\n春はあけぼの。やうやう白くなりゆく山ぎは、少し明かりて。\n": "cp932 euc-jp",
}
ENCODED = [(verse, encoding) for verse, encodings in VERSES.items() for encoding in encodings.split()]


def refusal(path: str) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    return str(error.value)


@pytest.mark.parametrize("length", [1, 300])  # as Python decodes 8 KiB at once, a second part is looked at
@pytest.mark.parametrize(("verse", "encoding"), ENCODED)
def test_advice_for_another_encoding_works_when_it_is_typed(verse, encoding, length, tree):
    path = Path("my texts/it's.txt")
    path.parent.mkdir()
    content = verse * length if encoding.startswith("utf") else "To be\n" * length + verse * length
    path.write_bytes(content.encode(encoding))
    said = re.search(r": not UTF-8 at byte \d+, but .*; use it's\.utf8\.txt of: (.*)", refusal(str(path)))
    if shutil.which("iconv") is None:
        pytest.skip("there is no iconv")
    subprocess.run(said[1], shell=True, check=True)
    assert read("it's.utf8.txt") == content


@pytest.mark.parametrize("before", [0, 8190, 10**5])
def test_first_wrong_byte_is_named_wherever_it_is(before, tree, monkeypatch):
    wrong = {b"abc\xc3\xa9\xe9 and": (5, "iconv -f .* ")}
    wrong |= {b"abcd\xf0\x9f\x99": (4, "head -c .* "), b"\xe9 and": (0, ""), b"caf\xe9": (3, "iconv -f .* ")}
    for part in (3, 5000, 10**6):
        monkeypatch.setattr(sources, "PART", part)
        for mark in (b"", b"\xef\xbb\xbf"):
            for content, (where, command) in wrong.items():
                Path("own.txt").write_bytes(mark + b"x" * before + content)
                said, place = refusal("own.txt"), where + len(mark) + before
                advice = rf"{command}.*own\.txt > own\.utf8\.txt$"
                assert re.search(rf"not UTF-8 at byte {place}, .* of: {advice}", said)


def test_a_picture_among_texts_is_named_with_a_pattern_that_leaves_it_out(tree):
    Path("inner/b.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 9)
    with pytest.raises(UserError, match=r"^data\.path = inner/b\.png: not a text; set ") as error:
        Text(DataConfig(path="inner"))
    (pattern,) = re.findall(r"set data\.path='(.*?)'", str(error.value))
    assert len(Text(DataConfig(path=pattern))) == len("inner/c.txt")
    assert read("inner/b.png", raw=True)  # as data.tokenizer=byte reads it


def test_several_files_train_and_resume_and_are_stored(succeed, refuse, text):
    names = ["one.txt", "two.txt", "val.txt"]
    for name in names:
        shutil.copy(text, name)
    settings = ["data.path=[one.txt,two.txt]", "data.val_path=val.txt", "trainer.max_steps=2"]
    out = succeed(*settings, "hydra.run.dir=run", "hydra.job.chdir=true")
    assert "17,200 characters for training, an epoch of 269 steps" in out
    stored = read_config(Path("run"))["data"]
    one, two, val = (str(Path(name).absolute()) for name in names)
    assert (stored["path"], stored["val_path"]) == ([one, two], val)
    Path("moved").mkdir()
    for name in names:
        shutil.move(name, "moved")
    places = ["data.path=[moved/one.txt,moved/two.txt]", "data.val_path=moved/val.txt"]
    assert "after 3 steps" in succeed("resume=run", "trainer.max_steps=3", *places)
    Path("moved/two.txt").write_text("O")
    assert f"init={Path('run').absolute()}" in refuse("resume=run", "trainer.max_steps=4", *places)


def test_training_on_everything_has_no_best_and_continues(succeed, capsys):
    everything = ["data.val_fraction=0", "hydra.run.dir=run"]
    for steps in (2, 4):
        out = succeed(f"trainer.max_steps={steps}", *(everything if steps == 2 else ["resume=run"]))
        assert f"nothing is held out, after {steps} steps" in out
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["last.safetensors"]
    assert read_result("run")["final_val_loss"] is None  # JSON has no nan
    evaluate.main(["run", "--json"])
    assert list(json.loads(capsys.readouterr().out)) == ["train"]


def test_characters_that_the_weights_do_not_know_are_left_out_or_learnt(trained, small, succeed, refuse):
    Path("new.txt").write_text("café ROMEO!\n" * 60, encoding="utf-8")
    new = ["init=run", "data.path=new.txt", "trainer.max_steps=2", "optimizer=adamw", "optimizer.lr=1e-9"]
    advice = r"'!', 'c', 'é' not among the 29 .*data\.extend_vocabulary=true .*data\.drop_unknown=true "
    assert re.search(advice, refuse("init=run", "data.path=new.txt"))
    before = read_last(trained)
    left_out = "note: data.path = new.txt: left out '!', 'c', 'é'"
    for choice, added, note in (("drop_unknown", "", left_out), ("extend_vocabulary", "!cé", "")):
        code, _, err = small(*new, f"data.{choice}=true", f"hydra.run.dir={choice}")
        assert (code, note in err) == (0, True)
        assert "after 3 steps" in succeed(f"resume={choice}", "trainer.max_steps=3")
        after = read_last(choice)
        old, grown = (one["gpt"]["tokenizer"]["vocabulary"] for one in (before, after))
        assert grown == old + added
        for name, weights in before["state_dict"].items():
            larger = after["state_dict"][name]
            assert np.allclose(weights, larger[: len(weights)], atol=1e-4)  # whose rate was tiny
        assert len(after["state_dict"]["tokens.weight"]) == len(grown) == after["gpt"]["model"]["vocab_size"]


# The text that files make: Tiny Shakespeare's, and where it is split


def test_wheel_has_the_right_text(tmp_path):
    shakespeare = tiny_shakespeare(tmp_path)
    assert (len(shakespeare), len(set(shakespeare)), shakespeare[:14]) == (1_115_394, 65, "First Citizen:")
    assert hashlib.sha256(shakespeare.encode()).hexdigest() == text.SHA256
    assert not list(tmp_path.iterdir())  # no copy is made of what the wheel has


def no_wheel(name):
    raise metadata.PackageNotFoundError(name)


def test_text_is_downloaded_once_if_there_is_no_wheel_and_another_one_is_refused(tmp_path, monkeypatch):
    wheel = Path(str(metadata.distribution(text.WHEEL).locate_file(text.WHEEL_FILE)))
    monkeypatch.setattr(metadata, "distribution", no_wheel)
    monkeypatch.setattr(text, "URL", wheel.as_uri())
    first = tiny_shakespeare(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloaded again"))
        assert tiny_shakespeare(tmp_path / "data") == first
    other = tmp_path / "tiny_shakespeare.txt"
    other.write_text("To be")
    with pytest.raises(UserError, match=r"no Tiny Shakespeare in .*SHA-256 differs"):
        tiny_shakespeare(tmp_path)
    monkeypatch.setattr(text, "URL", other.as_uri())
    with pytest.raises(UserError, match=r"no Tiny Shakespeare in .*invalid hash value"):
        tiny_shakespeare(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())  # what was refused is not kept


def test_validation_is_the_end_of_the_text_or_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in {"a.txt": "To be,\nor", "b.txt": "not to be\n", "val.txt": "that is"}.items():
        Path(name).write_text(content)
    whole = "To be,\nor\nnot to be\n"

    def parts(**settings) -> tuple[str, str, str]:
        found = Text(DataConfig(**settings))
        content = "".join(found)
        assert len(found) == len(content)
        return content[: found.split], content[found.split :], found.sha256

    apart = parts(path=["a.txt", "b.txt"], val_path="val.txt", val_fraction=0.5)
    assert apart[:2] == (whole, "that is")
    assert apart == parts(path=".", val_path="val.txt")  # which is not trained on, although it is there
    together = parts(path=["a.txt", "b.txt", "val.txt"], val_fraction=0.5)
    assert together[:2] == (whole[:13], whole[13:] + "that is")
    assert together[2] == hashlib.sha256((whole + "that is").encode()).hexdigest() != apart[2]
    assert parts(path="a.txt", val_fraction=0)[:2] == ("To be,\nor", "")
    Path("empty.txt").touch()
    for settings, name in [
        ({"path": "empty.txt"}, "path = empty.txt"),
        ({"path": []}, r"path = \[\]"),
        ({"path": "a.txt", "val_path": "empty.txt"}, "val_path = empty.txt"),
    ]:
        for raw in (False, True):
            with pytest.raises(UserError, match=rf"^data\.{name}: 0 characters; give"):
                Text(DataConfig(**settings), raw)
    with pytest.raises(UserError, match=r"^data\.val_path = a.txt: it names all files of data.path, and"):
        Text(DataConfig(path="a.txt", val_path="a.txt"))
