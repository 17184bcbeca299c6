"""metrics.csv: what is written, what is read back, and files that somebody has edited."""

import re

import pytest

from gpt.callbacks.metrics_file import MetricsFile
from gpt.settings import UserError


def write_rows(folder) -> MetricsFile:
    logger = MetricsFile(folder)
    logger.log_metrics({"train/loss": 4.25, "epoch": 0}, step=9)
    logger.log_metrics({"val/loss": 1e-05, "epoch": 0}, step=9)
    logger.log_metrics({"train/loss": -3.0, "epoch": 0}, step=19)
    logger.write()
    return logger


def test_a_row_is_written_for_each_call_with_the_step_first(tmp_path):
    write_rows(tmp_path)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["step,train/loss,val/loss", "9,4.25,", "9,,1e-05", "19,-3.0,"]  # the epoch is always 0


def test_a_resumed_run_keeps_rows_of_earlier_steps_and_drops_later_ones(tmp_path):
    write_rows(tmp_path)
    before = (tmp_path / "metrics.csv").read_text()
    logger = MetricsFile(tmp_path)
    logger.resume(10)
    logger.log_metrics({"train/loss": -3.0, "epoch": 0}, step=19)
    logger.write()
    assert (tmp_path / "metrics.csv").read_text() == before


def test_a_run_that_begins_reads_nothing_and_a_missing_file_has_no_rows(tmp_path):
    (tmp_path / "metrics.csv").write_text("damaged")
    logger = MetricsFile(tmp_path)
    logger.resume(0)
    assert logger.rows == []
    (tmp_path / "metrics.csv").unlink()
    logger.resume(10)
    assert logger.rows == []


HEADER = b"step,epoch,val/loss\n"
DAMAGED = {
    "empty": b"",
    "no csv": b"hello world, this is a letter\n",
    "json": b'{"step": 1}\n',
    "no header": b"9,0,1.5\n",
    "no step column": b"epoch,val/loss\n0,1.5\n",
    "a column twice": b"step,val/loss,val/loss\n9,1.5,1.5\n",
    "a formula as a name": b"step,=cmd()\n9,1.5\n",
    "semicolons": b"step;epoch;val/loss\n9;0;1.5\n",
    "byte order mark": b"\xef\xbb\xbf" + HEADER + b"9,0,1.5\n",
    "text for a number": HEADER + b"9,0,abc\n",
    "a formula for a number": HEADER + b"9,0,=1+1\n",
    "nan": HEADER + b"9,0,nan\n",
    "infinity": HEADER + b"9,0,1e999\n",
    "hexadecimal": HEADER + b"9,0,0x10\n",
    "other digits": HEADER + "9,0,\u0661\n".encode(),
    "underscores": HEADER + b"9,0,1_0\n",
    "no step": HEADER + b",0,1.5\n",
    "a negative step": HEADER + b"-9,0,1.5\n",
    "a broken step": HEADER + b"9.5,0,1.5\n",
    "a huge step": HEADER + b"99999999999,0,1.5\n",
    "a cell too many": HEADER + b"9,0,1.5,2\n",
    "a cell too few": HEADER + b"9,0\n",
    "an empty line": HEADER + b"9,0,1.5\n\n19,0,1.5\n",
    "NUL": HEADER + b"9,0,\x00\n",
    "a huge cell": HEADER + b"9,0," + b"1" * 200_000 + b"\n",
    "not UTF-8": HEADER + b"9,0,\xff\xfe\n",
    "control characters": HEADER + b"9,0,\x1b[31m\n",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=list(DAMAGED))
def test_a_damaged_file_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^file = {re.escape(str(path))}\b.*; restore it") as error:
        MetricsFile(tmp_path).resume(100)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300
    assert path.read_bytes() == content


@pytest.mark.parametrize("target", ["secret.txt", "missing.txt", "/dev/full", "."])
def test_a_link_is_not_written_through(target, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match="a link, which is not overwritten"):
        MetricsFile(run)
    assert (tmp_path / "secret.txt").read_text() == "secret"
    assert not (tmp_path / "missing.txt").exists()
