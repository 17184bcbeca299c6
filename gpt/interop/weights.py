"""Starting from other weights (`init=`): a run of this project, a checkpoint, or a folder of transformers."""

from collections.abc import Collection
from pathlib import Path

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


def starting_weights(config: RunConfig, run: Run, typed: Collection[str]) -> tuple[RunConfig, GPT, Tokenizer]:
    """The configuration with the model and the tokenizer of the weights that its `init` names, and these two.

    Raises UserError if a setting that was typed, or is not the default, contradicts the weights, and if they
    are not those that the run began with.
    """
    source, tokenizer = load_weights(str(config.init))
    if run.last is None and run.origin.get("init_sha256") not in (None, checksum(source.state_dict())):
        reason = f"no longer the weights that the run in {run.folder} began with"
        raise UserError(f"init = {shorten(config.init)}: {reason}; restore them, or choose another folder")
    if (stored := run.config) and config.model == stored.model:
        return config, source, tokenizer
    # No weight depends on these: rotary positions have a place for any context
    free = ["vocab_size", "dropout"] + ["context_length"] * (source.config.positions == "rotary")
    default, kept = RunConfig(), {"vocab_size": config.model.vocab_size}
    for group, theirs in (("model", dict(source.config)), ("data", {"tokenizer": tokenizer.kind})):
        for name, value in theirs.items():
            given, usual = (getattr(getattr(of, group), name) for of in (config, default))
            if f"{group}.{name}" not in typed and given == usual:
                continue
            if name in free:
                kept[name] = given
            elif given != value:
                reason = f"the weights of init={config.init} have {value}; leave it out"
                raise UserError(f"{group}.{name} = {shorten(given)}: {reason}")
    data = config.data.model_copy(update={"tokenizer": tokenizer.kind})
    model = source.config.model_copy(update=kept)
    return config.model_copy(update={"model": model, "data": data}), source, tokenizer
