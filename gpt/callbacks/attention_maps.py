"""Pictures of what each head attends to."""

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from pydantic import Field, validate_call
from torch import Tensor

from gpt.callbacks.loggers import writers
from gpt.model import attention_weights
from gpt.module import data_of, model_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TOKENS = 24  # more of them could not be read


class AttentionMaps(Callback):
    """Draws the attention weights of each layer and head on the first tokens of `text`, for TensorBoard.

    Drawing takes seconds, so it happens after one validation in `every`, and after the last one. It needs
    matplotlib (the extra called plot); without it, there are no pictures.
    """

    state_key = "attention"

    @validate_call
    def __init__(
        self, text: Annotated[str, Field(max_length=1_000)], every: Annotated[int, Field(ge=1)]
    ) -> None:
        self.text, self.every = text, every
        self.validations = 0

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]

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
                # a text may have any characters
                warnings.filterwarnings("ignore", "Glyph .* missing from font")
                for layer, heads in enumerate(weights, start=1):
                    try:
                        figure = draw_attention(heads, tokens, f"layer {layer}")
                    except ImportError:
                        return
                    # By this name it comes after all numbers. Steps are counted as for losses
                    writer.add_figure(f"weights/attention_layer_{layer}", figure, trainer.global_step - 1)


def draw_attention(weights: Tensor, tokens: Sequence[str], title: str) -> "Figure":
    """Draw one layer's weights (H, T, T), a panel for each head. A row is the token that attends, darker
    means more.

    Raises ImportError without matplotlib.
    """
    import matplotlib.style
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    heads, size = weights.shape[:2]
    columns = math.ceil(math.sqrt(heads))
    rows = math.ceil(heads / columns)
    names = [token.replace("\n", "\u23ce").replace(" ", "\u2423") for token in tokens]
    panel = 0.14 * size  # inches: a line of 8 points for each token
    with matplotlib.style.context(["default", "gpt.style"]):
        figure = Figure(
            figsize=(panel * columns + 1.6, panel * rows + 0.4 * rows + 0.9), layout="constrained"
        )
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for head, axes in enumerate(panels.flat):
            if head >= heads:
                axes.set_visible(False)
                continue
            # The square root brings out small weights, such as those of a head that looks at many tokens
            image = axes.imshow(weights[head].numpy(), cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
            axes.set_title(f"head {head + 1}")
            axes.set_xticks(
                range(size), names, family="DejaVu Sans Mono", rotation=90 if max(map(len, names)) > 1 else 0
            )
            axes.set_yticks(range(size), names, family="DejaVu Sans Mono")
            axes.tick_params(length=0, labelbottom=head + columns >= heads)
            axes.grid(visible=False)
        figure.colorbar(
            image, ax=panels, ticks=[0, 0.01, 0.1, 0.5, 1], format="%g", label="attention weight", aspect=40
        )
        figure.suptitle(title)
        figure.supxlabel("attended to", fontsize=9)
        figure.supylabel("attending", fontsize=9)
    return figure
