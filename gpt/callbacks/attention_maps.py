"""Pictures of what each head attends to."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from gpt.callbacks.context import data_of, model_of
from gpt.callbacks.state import check_state
from gpt.callbacks.tensorboard import writers
from gpt.model import attention_weights


class AttentionMaps(Callback):
    """Draws the attention weights of each layer and head on `text`, for TensorBoard.

    Drawing takes seconds, so it happens after one validation in `every`, and after the last one. It needs matplotlib (the
    extra called plot); without it, there are no pictures.
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
        ids = tokenizer.encode(tokenizer.drop_unknown(self.text))[None, : model.config.context_length]
        tokens = [tokenizer.decode(ids[:, n]) for n in range(ids.size(1))]
        for writer in writers(trainer) if tokens else ():
            try:
                from matplotlib.figure import Figure
            except ImportError:
                return
            weights = attention_weights(model, ids.to(pl_module.device))[:, 0].cpu()
            writer.add_figure("attention", draw_attention(weights, tokens, Figure), trainer.global_step - 1)  # as for losses


def draw_attention(weights: Tensor, tokens: list[str], figure_class: type) -> Any:
    """Draw weights (n_layer, H, T, T) as a grid: one row per layer, one column per head. Darker means more attention."""
    n_layer, n_head, size = weights.shape[:3]
    figure = figure_class(figsize=(1 + 2.2 * n_head, 0.5 + 2.2 * n_layer), dpi=80, layout="constrained")
    names = [token.replace("\n", "\u23ce").replace(" ", "\u2423") for token in tokens]
    for layer, row in enumerate(figure.subplots(n_layer, n_head, squeeze=False, sharex=True, sharey=True)):
        for head, axes in enumerate(row):
            axes.imshow(weights[layer, head].numpy(), cmap="Greys", vmin=0, vmax=1)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=7)
            axes.set_xticks(range(size), names, fontsize=5, family="DejaVu Sans Mono")
            axes.set_yticks(range(size), names, fontsize=5, family="DejaVu Sans Mono")
            axes.tick_params(length=0)
    figure.supxlabel("looked at", fontsize=8)
    figure.supylabel("looking", fontsize=8)
    return figure
