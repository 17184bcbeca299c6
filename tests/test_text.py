import hashlib
from importlib import metadata
from pathlib import Path

import pytest
import torch

from gpt import text
from gpt.config import DataConfig
from gpt.errors import UserError
from gpt.text import Text, tiny_shakespeare


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
    with pytest.raises(
        UserError, match=r"^data\.val_path = a.txt: it names all files of data.path, and none"
    ):
        Text(DataConfig(path="a.txt", val_path="a.txt"))
