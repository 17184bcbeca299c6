"""Pictures of what each head attends to."""

import math
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from gpt.callbacks.context import data_of, model_of
from gpt.callbacks.state import check_state
from gpt.callbacks.tensorboard import writers
from gpt.model import attention_weights
from gpt.settings import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_TOKENS = 24  # of a picture, so that each of them can be read


class AttentionMaps(Callback):
    """Draws the attention weights on the first 24 tokens of `text` for TensorBoard, one picture for each layer.

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
        size = min(MAX_TOKENS, model.config.context_length)
        ids = tokenizer.encode(tokenizer.drop_unknown(self.text))[None, :size]
        tokens = [tokenizer.decode(ids[:, n]) for n in range(ids.size(1))]
        for writer in writers(trainer) if tokens else ():
            weights = attention_weights(model, ids.to(pl_module.device))[:, 0].cpu()
            for layer, of_heads in enumerate(weights, start=1):
                try:
                    figure = draw_attention(of_heads, tokens, f"Attention in layer {layer}")
                except ImportError:
                    return
                # TensorBoard sorts its cards by their names, and the losses should come before these
                writer.add_figure(f"weights/attention in layer {layer}", figure, trainer.global_step - 1)  # as for losses


def draw_attention(weights: Tensor, tokens: list[str], title: str) -> "Figure":
    """Draw the weights (H, T, T) of one layer on at most 24 tokens: one square for each head, darker for more attention.

    The background is white on a dark page too, so that the tints mean the same there. Raises ImportError without matplotlib.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    n_head, size = weights.shape[:2]
    columns = min(n_head, 3)
    names = [printable(token.replace("\n", "\u23ce").replace(" ", "\u2423")) for token in tokens]
    side = 0.7 + 0.15 * max(size, 8)  # inches: a line of 8 points takes 0.15 of them
    with matplotlib.style.context(["default", "gpt.style"]):
        figure = Figure(figsize=(columns * side + 0.5, math.ceil(n_head / columns) * side + 0.8))
        grid = figure.subplots(math.ceil(n_head / columns), columns, squeeze=False).flat
        for head, axes in enumerate(grid):
            if head >= n_head:
                axes.remove()
                continue
            axes.imshow(weights[head].float().numpy(), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"head {head + 1}")
            axes.set_xticks(range(size), names, rotation=90 if max(map(len, names)) > 1 else 0)
            axes.set_yticks(range(size), names)
            axes.tick_params(length=0, labelfontfamily="DejaVu Sans Mono")
            axes.grid(visible=False)
        figure.suptitle(title)
        figure.supxlabel("looked at")
        figure.supylabel("looking")
    return figure
