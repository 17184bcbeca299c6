"""Starting from other weights (`init=`): a run of this project, a checkpoint, or a folder of transformers."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gpt.checkpoint import checksum, load
from gpt.config import RunConfig
from gpt.errors import UserError, shorten
from gpt.model import GPT
from gpt.run import Run
from gpt.tokenizer import Tokenizer


def load_weights(place: str) -> tuple[GPT, Tokenizer]:
    """The language model that `init=place` names, and its tokenizer. Raises UserError about `init`."""
    try:
        if (Path(place) / "config.json").is_file():
            from gpt.interop.huggingface import from_hf, tokenizer_from_hf  # they need an extra

            tokenizer = tokenizer_from_hf(Path(place))
            model = from_hf(place, len(tokenizer))
        else:
            model, tokenizer, _ = load(place)
    except UserError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise UserError(f"init = {shorten(place, 200)}: {reason}") from None
    if model.config.vocab_size != len(tokenizer):
        sizes = f"{model.config.vocab_size:,} embeddings, and a tokenizer of {len(tokenizer):,} tokens"
        raise UserError(f"init = {shorten(place, 200)}: {sizes}; use a model whose sizes agree")
    return model, tokenizer


def fit_to_weights(values: Mapping[str, Any], asked: Collection[str]) -> dict[str, Any]:
    """The values of a configuration with the model and the tokenizer of its `init`, if it has one.

    Raises UserError if one of the settings in `asked`, which the user has typed or chosen, contradicts the
    weights.
    """
    place = values.get("init")
    if not isinstance(place, str):
        return dict(values)
    source, tokenizer = load_weights(place)
    model = source.config.model_dump(mode="json", exclude={"vocab_size"})
    # No weight depends on these: rotary positions have a place for any context
    free = ["dropout"] + ["context_length"] * (source.config.positions == "rotary")
    model |= {name: values["model"][name] for name in free if f"model.{name}" in asked}
    kept = {"model": model, "data": {"tokenizer": tokenizer.kind}}
    for group, settings in kept.items():
        for name, value in settings.items():
            if f"{group}.{name}" in asked and (given := values[group][name]) != value:
                reason = f"the weights of init={place} have {value}; leave it out"
                raise UserError(f"{group}.{name} = {shorten(given)}: {reason}")
    return dict(values) | {"model": model, "data": values["data"] | kept["data"]}


def starting_weights(config: RunConfig, run: Run) -> tuple[GPT | None, Tokenizer | None]:
    """The model that a run begins with, and its tokenizer. None and None if it draws its weights.

    Raises UserError if they do not fit the configuration, or are not those that the run began with.
    """
    if config.init is None:
        return None, None
    model, tokenizer = load_weights(config.init)
    fit_to_weights(config.to_dict(), {f"model.{name}" for name in type(config.model).model_fields})
    if run.origin.get("init_sha256") not in (None, checksum(model.state_dict())):
        reason = f"no longer the weights that the run in {run.folder} began with"
        raise UserError(f"init = {shorten(config.init)}: {reason}; restore them, or choose another folder")
    return model, tokenizer
