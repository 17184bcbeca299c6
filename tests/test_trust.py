"""A run that is resumed is one's own; this is promised all the same. For checkpoints, see test_checkpoint."""

from pathlib import Path

import pytest

from gpt.cli.main import targets


def test_classes_are_found_at_any_depth():
    assert targets({"_target_": "a", "x": [{"y": {"_target_": "b"}}, "c"], "z": None}) == ["a", "b"]


DAMAGED = [b"", b"\xff\xfe", b"[1]", b"{}", b"a: !!python/object/apply:os.system [touch it_ran]"]


@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_file_of_a_run_is_one_line(call, trained, name, content):
    (trained / name).write_bytes(content)
    code, _, err = call(f"resume={trained}", "trainer.max_steps=6")
    assert code == 2
    assert err.startswith("error: file = ")
    assert err.count("\n") == 1
    assert (trained / name).read_bytes() == content
    assert not Path("it_ran").exists()


def test_a_terminal_is_not_commanded(call, trained):
    (trained / "sample.txt").write_text("fair \x1b]0;title\x07 Juliet")
    code, out, _ = call(f"resume={trained}")  # it has ended, and is reported
    assert code == 0
    assert "fair \\x1b]0;title\\x07 Juliet" in out


def test_a_run_that_has_ended_without_checkpoints_is_not_begun_again(call, trained):
    result = (trained / "result.json").read_bytes()
    for path in (trained / "checkpoints").iterdir():
        path.unlink()
    code, _, err = call(f"resume={trained}", "trainer.max_steps=6")
    assert code == 2
    assert "no checkpoint to continue from; begin again in another folder" in err
    assert (trained / "result.json").read_bytes() == result
