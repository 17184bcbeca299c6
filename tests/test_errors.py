import errno
import os

import pytest

from gpt.errors import UserError, did_you_mean, one_line, printable, shorten, user_errors


def test_advice_names_the_closest_name_or_all_if_they_are_few():
    """What other projects say is in test_bad_configuration.py."""
    assert did_you_mean("n_haed", ["n_head", "n_layer"]) == "did you mean n_head?"
    assert did_you_mean("xyz", ["b", "a"]) == "choose one of a, b"
    assert did_you_mean("xyz", map(str, range(99))) == "--cfg job lists all settings"


def test_values_in_messages_are_short_lines_without_control_characters():
    assert shorten("a\n b\x1b[2J") == "a b\\x1b[2J"
    assert shorten("x" * 99, 10) == "xxxxxxx..."
    assert one_line(ValueError("a\r\nb")) == "a b"
    assert printable("a\n\tb\x1b]0;title\x07\u202e") == "a\n\tb\\x1b]0;title\\x07\\u202e"
    assert printable("one\r\ntwo\r\n") == "one\ntwo\n"
    persian = "\u0645\u06cc\u200c\u062e\u200f"
    assert printable(persian) == persian
    assert printable("न्\u200dन") == "न्\u200dन"  # a joiner, which Hindi needs


MISTAKES = [
    (UserError("a = b: c;\nd"), 2, "error: a = b: c; d"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (OSError(28, "No space left on device"), 2, "error: output = (standard output): No space left on device"),
]
for number in (errno.EACCES, errno.ENAMETOOLONG, errno.EROFS, errno.ENOTDIR):
    line = f"error: file = a/b: {os.strerror(number)}; choose another place"
    MISTAKES.append((OSError(number, "", "a/b"), 2, line))


@pytest.mark.parametrize(("error", "code", "line"), MISTAKES)
def test_mistakes_end_in_one_line_and_an_exit_code(capfd, error, code, line):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise error
    assert stop.value.code == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("a"), OSError(2, "missing", "a.txt"), ValueError("b")])
def test_bugs_keep_their_traceback(capsys, error):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise error
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("a bug of this project. Please report it with the lines above and the command.\n")
