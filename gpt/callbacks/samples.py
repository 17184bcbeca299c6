"""Texts that the model writes while it is trained."""

from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from pydantic import Field, validate_call

from gpt.callbacks.loggers import writers
from gpt.generate import generate
from gpt.module import data_of, is_training, model_of

MOST_KEPT = 100  # texts in the history, which is part of every checkpoint
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Samples(Callback):
    """After each validation, has the model continue `prompt` by `tokens` tokens at each of `temperatures`,
    for TensorBoard.

    `history` holds the steps taken and the texts at the first temperature. Of more than 100 texts, every
    second one is dropped. Prompt and random numbers are the same each time, so that samples can be compared.
    The random numbers come from a generator of its own, so that training is not affected.
    """

    state_key = "samples"

    @validate_call
    def __init__(
        self,
        prompt: Annotated[str, Field(max_length=10_000)],
        tokens: Annotated[int, Field(ge=0, le=100_000)],
        temperatures: Annotated[list[Temperature], Field(min_length=1, max_length=20)],
        top_k: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        self.prompt, self.tokens, self.temperatures, self.top_k = prompt, tokens, temperatures, top_k
        self.history: list[tuple[int, str]] = []

    @property
    def latest(self) -> str:
        """The newest text, which is empty before the first validation."""
        return self.history[-1][1] if self.history else ""

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [(step, text) for step, text in state_dict["history"]]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (trainer.is_global_zero and is_training(trainer)):
            return
        texts = self.sample(trainer, pl_module)
        for temperature, text in zip(self.temperatures, texts, strict=True):
            # TensorBoard renders Markdown, in which indented text is code and keeps its line breaks
            markdown = "    " + text.replace("\n", "\n    ")
            for writer in writers(trainer):  # at the step that losses have
                writer.add_text(f"sample/temperature {temperature:g}", markdown, trainer.global_step - 1)
        self.history.append((trainer.global_step, texts[0]))
        if len(self.history) > MOST_KEPT:
            del self.history[1::2]

    def sample(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[str]:
        """The prompt, without characters that the tokenizer does not know, and the model's continuation of
        it, for each temperature. All are drawn as one batch.
        """
        tokenizer, device, rows = data_of(trainer).tokenizer, pl_module.device, len(self.temperatures)
        prompt = tokenizer.drop_unknown(self.prompt) or tokenizer.default_prompt
        ids = tokenizer.encode(prompt)[None].expand(rows, -1).to(device)
        generators = [torch.Generator(device).manual_seed(0) for _ in range(rows)]
        temperatures = torch.tensor(self.temperatures, device=device)
        drawn = generate(
            model_of(pl_module), ids, self.tokens, temperatures, self.top_k, generator=generators
        )
        columns = [column.cpu() for column in drawn]
        texts = torch.stack(columns, dim=1) if columns else torch.empty(rows, 0, dtype=torch.int64)
        return [prompt + tokenizer.decode(row) for row in texts]
