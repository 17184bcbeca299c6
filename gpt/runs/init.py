"""Starting from other weights (`init=`): a run of this project, a .ckpt file, or a folder of Hugging Face's transformers."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt.checkpoint import find, load
from gpt.config import RunConfig
from gpt.errors import UserError, shorten
from gpt.files import read_json
from gpt.model import GPT
from gpt.runs.folder import Run
from gpt.tokenizer import Tokenizer

MAY_DIFFER = {"vocab_size", "dropout"}  # the first follows from the tokenizer, the second changes no weight


@dataclass(frozen=True)
class Weights:
    """What a run starts from in place of random numbers."""

    model: GPT
    tokenizer: Tokenizer

    @property
    def sha256(self) -> str:
        """A hash of all weights, whatever file they were in."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_weights(place: str) -> Weights:
    """The language model that `init=place` names. Raises UserError, whose line names `init`, if there is none."""
    try:
        if (Path(place) / "config.json").is_file():
            from gpt.interop.huggingface import from_hf, tokenizer_from_hf

            model, tokenizer = from_hf(place), tokenizer_from_hf(Path(place))
        else:
            model, tokenizer, _ = load(find(place))
    except UserError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise UserError(f"init = {shorten(place, 200)}: {reason}") from None
    if model.config.vocab_size != len(tokenizer):
        sizes = f"{model.config.vocab_size:,} embeddings, and a tokenizer of {len(tokenizer):,} tokens"
        raise UserError(f"init = {shorten(place, 200)}: {sizes}; use a model whose sizes agree")
    return Weights(model, tokenizer)


def starting_weights(config: RunConfig, run: Run) -> Weights | None:
    """The weights that a run begins with. None if it draws them, or has a checkpoint of its own, which is all it needs.

    Raises UserError if they do not fit the configuration, or are not those that the run began with.
    """
    if config.init is None or run.checkpoint is not None:
        return None
    weights = load_weights(config.init)
    check_fit(asdict(config.model), weights, config.init, asdict(config.model))
    began = (
        read_json(run.folder / "run.json").get("init_sha256") if (run.folder / "run.json").exists() else None
    )
    if began not in (None, weights.sha256):
        raise UserError(
            f"init = {shorten(config.init)}: no longer the weights that the run in {run.folder} began with"
        )
    return weights


def fit_to_weights(values: Mapping[str, Any], asked: Collection[str]) -> dict[str, Any]:
    """The values of a configuration with the model and the tokenizer of its `init`, if it has one.

    `asked` are the fields of the model that the user has chosen. Raises UserError for one that contradicts the weights.
    """
    if not isinstance(place := values.get("init"), str):
        return dict(values)
    weights, model, data = load_weights(place), values.get("model"), values.get("data")
    if not (isinstance(model, Mapping) and isinstance(data, Mapping)):
        return dict(values)  # which RunConfig refuses
    check_fit(model, weights, place, asked)
    kept = asdict(weights.model.config) | {"vocab_size": None}
    if "dropout" in asked:
        kept["dropout"] = model.get("dropout")
    return dict(values) | {"model": kept, "data": dict(data) | {"tokenizer": weights.tokenizer.kind}}


def check_fit(model: Mapping[str, Any], weights: Weights, place: str, fields: Collection[str]) -> None:
    """Raises UserError for the first of the model's `fields` that is not that of the weights."""
    for field, has in asdict(weights.model.config).items():
        if field in fields and field not in MAY_DIFFER and model.get(field) != has:
            given = shorten(model.get(field))
            raise UserError(
                f"model.{field} = {given}: the weights of init={shorten(place)} have {has}; leave it out"
            )
