import os

import pytest

from gpt.errors import UserError
from gpt.files import atomic, read_json, remove_staged, write_json, write_text


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(ZeroDivisionError), atomic(target) as file:
        file.write(b"half" * (1 // 0))

    def fail(*arguments) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"a\.txt: not written, No space"):
        write_text(target, "new")
    for place in (tmp_path, target / "b.txt"):  # a folder, and a file in what is none
        with pytest.raises(UserError, match="not written"):
            write_text(place, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_written_file_has_the_permissions_of_any_new_file_and_links_stay(tmp_path):
    (tmp_path / "b.txt").write_text("x")
    (tmp_path / "link.txt").symlink_to("inner/a.txt")
    write_text(tmp_path / "link.txt", "x\r\n")
    assert (tmp_path / "inner" / "a.txt").read_bytes() == b"x\r\n"
    assert (tmp_path / "inner" / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_what_a_killed_process_left_can_be_removed(tmp_path):
    for name in (".a.txt.tmp-1", ".b.tmp-host-2", ".hidden", "own.tmp-1"):
        (tmp_path / name).touch()
    remove_staged(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "own.tmp-1"]


def test_damaged_file_is_refused(tmp_path):
    write_json(tmp_path / "a.json", {"pi": 3.14})
    assert read_json(tmp_path / "a.json") == {"pi": 3.14}
    for content in (b"", b'{"pi":', b"[1]", b"7", b"\xff"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.json: missing or damaged; restore it"):
            read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json: missing or damaged; restore it"):
        read_json(tmp_path / "b.json")
