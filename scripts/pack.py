"""Pack the best checkpoint of a finished run as the model that comes with this project, --pretrained:

python scripts/pack.py outputs/RUN
"""

import copy
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from gpt.errors import UserError, user_errors
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None
from gpt.cli.options import Parser
from gpt.files import PRETRAINED, read_json

if TYPE_CHECKING:  # --help needs no torch
    import numpy as np

    from gpt.model import GPT
    from gpt.tokenizer import Tokenizer

PLACES = ("hydra.", "data.path", "data.val_path", "data.folder")  # settings that name folders of one machine
LARGEST = 6_000_000  # bytes of the packed file: it is cloned with the repository


def pack(run: Path, target: Path = PRETRAINED) -> dict[str, Any]:
    """Write the weights of a run's best checkpoint in float16, and return what the file says about them.

    float16 changes the loss less than bfloat16 does: its range is enough for trained weights, and it has
    three more bits.
    Raises UserError for a run that has not finished, or was trained on another text.
    """
    from gpt.checkpoint import find, load, write
    from gpt.text import SHA256

    result, origin = read_json(run / "result.json"), read_json(run / "run.json")
    checkpoint = find(str(run))
    model, tokenizer, metadata = load(checkpoint)
    if metadata["text_sha256"] != SHA256:
        raise UserError(f"run = {run}: not trained on Tiny Shakespeare; give a run with data.path=null")
    if 2 * sum(weight.numel() for weight in model.parameters()) > LARGEST:
        raise UserError(f"run = {run}: its weights take more than {LARGEST:,} bytes; give a smaller model")
    metadata["config"]["data"] |= {"path": None, "folder": "data"}  # it is the same text, wherever it was
    exact = losses(model, tokenizer, metadata)
    weights = copy.deepcopy(model).half().state_dict()  # a tied head stays tied
    model.load_state_dict(weights)
    metadata["pretrained"] = {
        "command": shorten_command(origin["command"]),
        "hardware": describe_hardware(origin["machine"], metadata["config"]["trainer"]["precision"]),
        "date": datetime.fromtimestamp(checkpoint.stat().st_mtime, UTC).date().isoformat(),
        "steps": result["best_step"],
        "losses_as_trained": exact,
        "losses_as_stored": losses(model, tokenizer, metadata),
    }
    draft = {} if model.draft is None else {"draft": model.draft.table}
    write(target, {"gpt": metadata, "state_dict": weights} | draft)
    return metadata["pretrained"]


def losses(model: "GPT", tokenizer: "Tokenizer", metadata: Mapping[str, Any]) -> dict[str, float]:
    """Losses of the validation split in nats per character.

    There are three: of all of it, of all of it in windows of half the context, and of its first batch.
    """
    from gpt.text import tiny_shakespeare

    text = tiny_shakespeare(Path("data"))
    ids = tokenizer.ids(text[int(len(text) * (1 - metadata["config"]["data"]["val_fraction"])) :])
    context = model.config.context_length
    return {
        "val_loss": mean_loss(model, ids, context),
        "val_loss_half_context": mean_loss(model, ids, context // 2),
        "val_loss_first_batch": mean_loss(model, ids, context, batches=1),  # quick to check
    }


def mean_loss(model: "GPT", ids: "np.ndarray", context_length: int, batches: int | None = None) -> float:
    """The mean loss over the first `batches` batches of windows of ids (N,), or all, as a run validates."""
    import torch

    from gpt.data import VALIDATION_BATCH, AllWindows
    from gpt.module import cross_entropy

    total, windows = 0.0, 0
    with torch.inference_mode():
        for inputs, targets in islice(AllWindows(ids, context_length, VALIDATION_BATCH), batches):
            total += len(inputs) * cross_entropy(model(inputs), targets).item()
            windows += len(inputs)
    return total / windows


def shorten_command(words: list[str]) -> str:
    """The command that trained a run, without the folders of the machine that it ran on."""
    return shlex.join(
        ["python", "scripts/train.py", *(word for word in words[1:] if not word.startswith(PLACES))]
    )


def describe_hardware(machine: Mapping[str, Any], precision: str) -> str:
    """What kind of machine trained a run, without naming it."""
    kind = machine["cpu"].replace("AVX", "AVX-") if machine["device"] == "cpu" else machine["device"]
    return (
        f"{kind} with {'bfloat16' if precision == 'bf16-mixed' else 'float32'}, {machine['threads']} threads"
    )


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="a finished run folder")
    for name, value in pack(parser.parse_args().run).items():
        print(f"{name}: {value}")
    print(f"written: {PRETRAINED.stat().st_size:,} bytes, {PRETRAINED}")


if __name__ == "__main__":
    with user_errors():
        main()
