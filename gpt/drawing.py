"""A picture of what a model attends to, for TensorBoard, the report and the notebook."""

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_attention(weights: Tensor, tokens: Sequence[str], title: str) -> "Figure":
    """Draw one layer's weights (H, T, T), a panel for each head. Rows attend to columns, dark is much.

    Raises ImportError without matplotlib.
    """
    import matplotlib.style
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a text may have any characters
    heads, size = weights.shape[:2]
    columns = math.ceil(math.sqrt(heads))
    rows = math.ceil(heads / columns)
    names = [token.replace("\n", "\u23ce").replace(" ", "\u2423") for token in tokens]
    ticks = {"ticks": range(size), "labels": names, "family": "DejaVu Sans Mono"}
    panel = 0.14 * size  # inches: a line of 8 points for each token
    with matplotlib.style.context(["default", "gpt.style"]):
        figure = Figure((panel * columns + 1.6, panel * rows + 0.4 * rows + 0.9), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in panels.flat[heads:]:
            axes.set_visible(False)
        for head, axes in enumerate(panels.flat[:heads]):
            # The square root brings out small weights, such as those of a head that looks at many tokens
            image = axes.imshow(weights[head].numpy(), cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
            axes.set_title(f"head {head + 1}")
            axes.set_xticks(**ticks, rotation=90 if max(map(len, names)) > 1 else 0)
            axes.set_yticks(**ticks)
            axes.tick_params(length=0, labelbottom=head + columns >= heads)
            axes.grid(visible=False)
        marks = [0, 0.01, 0.1, 0.5, 1]
        figure.colorbar(image, ax=panels, ticks=marks, format="%g", label="attention weight", aspect=40)
        figure.suptitle(title)
        figure.supxlabel("attended to", fontsize=9)
        figure.supylabel("attending", fontsize=9)
    return figure
