"""How several devices share the work of a run: the choices of `trainer.strategy`, and all in which a run depends on them."""

from collections.abc import Callable
from dataclasses import dataclass

from lightning.pytorch.strategies import DDPStrategy, Strategy

from gpt.config import RunConfig
from gpt.errors import UserError, shorten
from gpt.interop import fsdp
from gpt.module import GPTModule


@dataclass(frozen=True)
class Distribution:
    """What a run does differently under a strategy. Without arguments: what it does on one device."""

    make: Callable[[], str | Strategy] = lambda: "auto"  # for Lightning's Trainer
    module: type[GPTModule] = GPTModule
    shares_weights: bool = (
        False  # no process has a whole model, and the optimizer's state is stored in another order
    )
    check: Callable[[RunConfig], None] = lambda config: (
        None
    )  # raises UserError for settings that do not go with it


DISTRIBUTIONS = {
    "auto": Distribution(),  # one device
    "ddp": Distribution(
        lambda: DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True)
    ),  # buffers are constants
    "fsdp": Distribution(fsdp.make_strategy, fsdp.ShardedGPTModule, True, fsdp.check_supported),
}
NEED_WHOLE_MODEL = {
    "samples",
    "attention",
    "zero_shot",
}  # callbacks by which one process calls the model alone


def distribution_of(strategy: str) -> Distribution:
    """The distribution that `trainer.strategy` names. Raises UserError if there is none of that name."""
    if strategy not in DISTRIBUTIONS:
        names = ", ".join(DISTRIBUTIONS)
        raise UserError(f"trainer.strategy = {shorten(strategy)}: not supported; choose one of {names}")
    return DISTRIBUTIONS[strategy]
