"""What TensorBoard shows of a run beside its curves and samples. Nothing here changes a run, or runs without TensorBoard."""

import math
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from gpt.model import GPT, attention
from gpt.settings import convert


def writers(trainer: L.Trainer) -> Iterator[SummaryWriter]:
    """None but on the first process of a training."""
    if trainer.is_global_zero and trainer.state.fn == "fit":
        yield from (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


class HParams(Callback):
    """The HParams tab: `settings`, in general what was typed or swept, and `hp/best_val_loss` so far, also of a killed run.

    And a chart with both losses, under Custom Scalars.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = {key: value if isinstance(value, (int, float)) else str(value) for key, value in settings.items()}
        self.best = math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for writer in writers(trainer):
            writer.add_custom_scalars({"loss": {"train and validation": ["Multiline", ["train/loss", "val/loss"]]}})
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                best = self.best if self.best < math.inf else math.nan
                logger.log_hyperparams(self.settings, {"hp/best_val_loss": best}, step=trainer.global_step)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.best = min(self.best, trainer.callback_metrics["val/loss"].item())
        for writer in writers(trainer):
            writer.add_scalar("hp/best_val_loss", self.best, trainer.global_step - 1)  # as losses are


class AttentionMaps(Callback):
    """A picture of who looks at whom in `text`, for each layer and head: at the end, and at one validation in `every`, as
    drawing takes seconds. Needs matplotlib (extra plot)."""

    def __init__(self, text: str, every: int = 4) -> None:
        self.text, self.every, self.seen = convert(text, str, "text"), max(1, convert(every, int, "every")), 0

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        tokenizer, model = trainer.datamodule.tokenizer, pl_module.model
        self.seen += 1
        if self.seen % self.every and trainer.global_step < trainer.max_steps:
            return
        ids = tokenizer.encode(tokenizer.known(self.text))[None, : model.config.context_length]
        names = [tokenizer.decode(ids[:, n]) for n in range(ids.size(1))]
        for writer in writers(trainer) if names else ():
            try:
                from matplotlib.figure import Figure
            except ImportError:
                return
            weights = attention_weights(model, ids.to(pl_module.device))[:, 0].cpu()
            writer.add_figure("attention", draw_attention(weights, names, Figure), trainer.global_step - 1)


@torch.no_grad()
def attention_weights(model: GPT, ids: Tensor) -> Tensor:
    """The weights (n_layer, B, H, T, T) with which the positions of ids (B, T) attend to each other; row: who looks."""
    kept, was_training = [], model.training

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y, weights = attention(q, k, v, torch.nn.Identity())
        kept.append(weights)
        return y

    model.eval()
    try:
        for block in model.blocks:
            block.attn.mix = mix  # covers the method until it is deleted
        model.forward(ids)  # not compiled
    finally:
        for block in model.blocks:
            del block.attn.mix
        model.train(was_training)
    return torch.stack(kept)


def draw_attention(weights: Tensor, tokens: list[str], figure_class: type) -> Any:
    """A grid of heads (n_layer, H, T, T): layers downwards, heads across, the darker the more attention."""
    layers, heads, size = weights.shape[:3]
    figure = figure_class(figsize=(1 + 2.2 * heads, 0.5 + 2.2 * layers), dpi=80, layout="constrained")
    names = [token.replace("\n", "\u23ce").replace(" ", "\u2423") for token in tokens]
    for layer, row in enumerate(figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)):
        for head, axes in enumerate(row):
            axes.imshow(weights[layer, head], cmap="Greys", vmin=0, vmax=1)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=7)
            axes.set_xticks(range(size), names, fontsize=5, family="DejaVu Sans Mono")
            axes.set_yticks(range(size), names, fontsize=5, family="DejaVu Sans Mono")
            axes.tick_params(length=0)
    figure.supxlabel("looked at", fontsize=8)
    figure.supylabel("looking", fontsize=8)
    return figure


class TokenEmbeddings(Callback):
    """At the end, the token embedding with its characters, for the Projector tab."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        tokenizer = trainer.datamodule.tokenizer
        names = [repr(tokenizer.decode([n])) for n in range(len(tokenizer))]  # a raw tab would break the table
        for writer in writers(trainer):
            writer.add_embedding(
                pl_module.model.tokens.weight.detach(), metadata=names, tag="tokens", global_step=trainer.global_step
            )


class WeightNorms(Callback):
    """At each validation, logs `weight_norm/...` of the embedding, each block and the head."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        model = pl_module.model
        parts = {"tokens": model.tokens, "head": model.head} | {f"block_{n + 1}": block for n, block in enumerate(model.blocks)}
        norms = {name: torch.nn.utils.get_total_norm([p.detach() for p in part.parameters()]) for name, part in parts.items()}
        pl_module.log_dict({f"weight_norm/{name}": norm for name, norm in norms.items()}, sync_dist=True)
