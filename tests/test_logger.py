"""metrics.csv: what is written, and what is read back."""

from gpt.callbacks import MetricsFile


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
