"""What a run asks of its loggers beyond Lightning's own interface."""

from lightning.pytorch.loggers import Logger


class RunLogger(Logger):
    """A logger that writes into the run's folder, and goes on where a checkpoint was taken."""

    def resume(self, step: int) -> None:
        """Keep what an earlier process has logged of the first `step` steps, and drop what it logged after them.

        Is called before anything is logged, with 0 for a run that begins. Raises UserError for a damaged file.
        """
        raise NotImplementedError

    def write(self) -> None:
        """Put everything that was logged on disk. Is called before each checkpoint is written."""
        raise NotImplementedError
