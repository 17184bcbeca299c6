"""What a language model knows of a task without fine-tuning, by its likelihoods ([G] section 5, figure 2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt.finetune.baselines import share_right
from gpt.finetune.task import Task
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

GAP = "\n\n"  # stands between two speeches
BATCH = 32  # sequences


def zero_shot_accuracy(model: GPT, tokenizer: Tokenizer, task: Task, limit: int = 200) -> float:
    """The share of the first `limit` test examples that the model gets right without having learnt the task.

    classification: the label's own text is likeliest after the text, so labels have to be such as "." and "?"
    choice:         the context raises the likelihood of the candidate by more than it does that of the others
    entailment and similarity: the answer is yes if the first text raises the likelihood of the second by more
                    than it does in the median example

    Likelihoods are means over tokens of their logarithms. How much the first text raises them tells more than
    how likely the second one is then, which depends above all on its words. The median is that of the other
    examples, whose labels are not seen.
    """
    examples = task.test[:limit]
    if task.kind == "classification":
        pairs = [(example.texts[0], label) for example in examples for label in task.labels]
        scores = mean_log_likelihoods(model, tokenizer, pairs)
    else:
        befores = [example.texts[0].rstrip("\n") + GAP for example in examples]
        pairs = [(before, text) for before, e in zip(befores, examples, strict=True) for text in e.texts[1:]]
        alone = [(GAP, text) for _, text in pairs]
        scores = mean_log_likelihoods(model, tokenizer, pairs) - mean_log_likelihoods(model, tokenizer, alone)
    scores = scores.view(len(examples), -1)
    yes_or_no = task.kind in ("entailment", "similarity")
    chosen = (scores > scores.median())[:, 0].int() if yes_or_no else scores.argmax(dim=1)
    return share_right(chosen.tolist(), examples)


@torch.no_grad()
def mean_log_likelihoods(model: GPT, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """The mean over its tokens of log p(second text | first text), in nats, for each of N pairs (N,).

    Of texts that are together longer than the context plus one, the first loses its beginning, and then the
    second its end.
    """
    limit, device = model.config.context_length + 1, model.head.weight.device
    windows = []
    for number, (first, second) in enumerate(pairs):
        ids = tokenizer.encode(second)[: limit - 1]
        windows.append((number, len(ids), torch.cat((tokenizer.encode(first), ids))[-limit:]))
    windows.sort(key=lambda window: len(window[2]))  # so that a batch has little padding
    result, was_training = torch.zeros(len(pairs)), model.training
    model.eval()
    for start in range(0, len(windows), BATCH):
        batch = windows[start : start + BATCH]
        ids = pad_sequence([window for *_, window in batch], batch_first=True).to(device)
        losses = F.cross_entropy(model.forward(ids[:, :-1]).mT, ids[:, 1:], reduction="none")  # (B, T)
        for (number, count, window), row in zip(batch, losses, strict=True):
            result[number] = -row[len(window) - 1 - count : len(window) - 1].mean().item()
    model.train(was_training)
    return result
