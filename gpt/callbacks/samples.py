"""Texts that the model writes while it is trained."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gpt.callbacks.context import data_of, is_training, model_of
from gpt.callbacks.state import check_state
from gpt.callbacks.tensorboard import writers
from gpt.errors import UserError
from gpt.generate import check_sampling, generate

LARGEST_SAMPLE = 2**24  # bytes of a text that a checkpoint brings along
MOST_KEPT = 100  # texts in the history, which is part of every checkpoint


class Samples(Callback):
    """After each validation, has the model continue `prompt` by `tokens` tokens at each of `temperatures`, for TensorBoard.

    `history` holds the steps taken and the texts at the first temperature. Of more than 100 texts, every second one is
    dropped. Prompt and random numbers are the same each time, so that samples can be compared. The random numbers come from
    a generator of its own, so that training is not affected.
    """

    state_key = "samples"

    def __init__(self, prompt: str, tokens: int, temperatures: list[float], top_k: int | None = None) -> None:
        if len(prompt) > 10_000:
            raise ValueError(f"prompt = ({len(prompt):,} characters): too long; set at most 10,000")
        if not 0 <= tokens <= 100_000:
            raise ValueError(f"tokens = {tokens}: out of range; set it between 0 and 100,000")
        if not 1 <= len(temperatures) <= 20:
            raise ValueError(
                f"temperatures = ({len(temperatures)} values): not from 1 to 20 of them; set a list such as [0.8]"
            )
        for temperature in temperatures:
            try:
                check_sampling(temperature, top_k, None)
            except UserError as error:
                raise ValueError(str(error).replace("temperature =", "temperatures =", 1)) from None
        self.prompt, self.tokens, self.temperatures, self.top_k = prompt, tokens, temperatures, top_k
        self.history: list[tuple[int, str]] = []

    @property
    def latest(self) -> str:
        """The newest text, which is empty before the first validation."""
        return self.history[-1][1] if self.history else ""

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if isinstance(state_dict, dict) and list(state_dict) == ["latest"]:
            return  # of a run that an earlier version began, which kept no history
        history = check_state("samples", state_dict, {"history": list[tuple[int, str]]})["history"]
        if len(history) > MOST_KEPT or any(step < 0 for step, _ in history):
            raise refusal(f"not up to {MOST_KEPT} texts with the steps at which they were written")
        try:
            can_be_written = all(len(text.encode()) <= LARGEST_SAMPLE for _, text in history)
        except UnicodeEncodeError:  # half of a surrogate pair
            can_be_written = False
        if not can_be_written:
            raise refusal("its text is too long, or not possible to write as UTF-8")
        self.history = history

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (trainer.is_global_zero and is_training(trainer)):
            return
        texts = [self.sample(trainer, pl_module, temperature) for temperature in self.temperatures]
        for temperature, text in zip(self.temperatures, texts, strict=True):
            # TensorBoard renders Markdown, in which indented text is code and keeps its line breaks
            markdown = "    " + text.replace("\n", "\n    ")
            for writer in writers(trainer):
                writer.add_text(
                    f"sample/temperature {temperature:g}", markdown, trainer.global_step - 1
                )  # as for losses
        self.history.append((trainer.global_step, texts[0]))
        if len(self.history) > MOST_KEPT:
            del self.history[1::2]

    def sample(self, trainer: L.Trainer, pl_module: L.LightningModule, temperature: float) -> str:
        """The prompt, without characters that the tokenizer does not know, and the model's continuation."""
        tokenizer, device = data_of(trainer).tokenizer, pl_module.device
        prompt = tokenizer.drop_unknown(self.prompt) or tokenizer.default_prompt
        ids = tokenizer.encode(prompt)[None].to(device)
        generator = torch.Generator(device).manual_seed(0)
        drawn = generate(model_of(pl_module), ids, self.tokens, temperature, self.top_k, generator=generator)
        return prompt + tokenizer.decode(int(i) for i in drawn)


def refusal(reason: str) -> UserError:
    return UserError(f"checkpoint = (state of samples): {reason}; use a checkpoint that this project wrote")
