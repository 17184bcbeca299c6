"""How Lightning writes and reads checkpoint files.

This is not a part of `gpt.checkpoint`, because importing Lightning takes several times as long as writing a text.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from gpt.checkpoint import read, refusal, tensors_in
from gpt.files import atomic
from gpt.training_state import check_training_state


class AtomicCheckpointIO(TorchCheckpointIO):
    """Files that are whole at any time.

    Lightning stages a file in the temporary folder. If that is on another file system, the last step is a copy over the
    good file and not a rename. Here it is staged beside its target.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        try:
            with atomic(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch wraps some of the former in the latter
            needed = sum(tensor.nbytes for tensor in tensors_in(checkpoint))
            free = shutil.disk_usage(Path(path).parent).free
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise refusal(
                Path(path),
                f"not written, {needed:,} bytes needed and {free:,} free ({reason})",
                "make room and resume: the previous one is whole",
            ) from None

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What Lightning goes on from. What it would believe without a check is replaced, or left to ResumeAtStep."""
        content = read(Path(path))
        check_training_state(content)
        return content | {
            "pytorch-lightning_version": lightning.__version__,
            "loops": None,
            "lr_schedulers": [],
        }
