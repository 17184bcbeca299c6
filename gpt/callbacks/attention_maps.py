"""Pictures of what each head attends to."""

import warnings
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt.callbacks.context import data_of, model_of
from gpt.callbacks.state import check_state
from gpt.callbacks.tensorboard import writers
from gpt.model import attention_weights

MOST_TOKENS = 24  # more of them could not be read


class AttentionMaps(Callback):
    """Draws the attention weights of each layer and head on the first tokens of `text`, for TensorBoard.

    Drawing takes seconds, so it happens after one validation in `every`, and after the last one. It needs the extra
    analysis; without it, there are no pictures.
    """

    state_key = "attention"

    def __init__(self, text: str, every: int) -> None:
        if len(text) > 1_000:
            raise ValueError(f"text = ({len(text):,} characters): too long for a picture; set at most 1,000")
        if every < 1:
            raise ValueError(f"every = {every}: must be at least 1; set a number of validations")
        self.text, self.every = text, every
        self.validations = 0

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = check_state("attention", state_dict, {"validations": int})["validations"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validations += 1
        if self.validations % self.every and trainer.global_step < trainer.max_steps:
            return
        tokenizer, model = data_of(trainer).tokenizer, model_of(pl_module)
        length = min(model.config.context_length, MOST_TOKENS)
        ids = tokenizer.encode(tokenizer.drop_unknown(self.text))[None, :length]
        tokens = [tokenizer.decode(ids[:, n]) for n in range(ids.size(1))]
        for writer in writers(trainer) if tokens else ():
            weights = attention_weights(model, ids.to(pl_module.device))[:, 0].cpu()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a text may have any characters
                for layer, heads in enumerate(weights, start=1):
                    try:
                        from gpt.analysis.plots import draw_attention
                    except ImportError:
                        return
                    figure = draw_attention(heads, tokens, f"layer {layer}")
                    # By this name it comes after all numbers. Steps are counted as for losses
                    writer.add_figure(f"weights/attention_layer_{layer}", figure, trainer.global_step - 1)
