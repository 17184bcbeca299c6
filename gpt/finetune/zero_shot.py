"""What a language model knows of a task before any fine-tuning, by the likelihoods that it gives ([G] section 5, figure 2)."""

from collections.abc import Sequence
from statistics import median

import torch
import torch.nn.functional as F

from gpt.finetune.task import Task
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

GAP = "\n\n"  # stands between two speeches
BATCH = 32  # sequences


def zero_shot_accuracy(model: GPT, tokenizer: Tokenizer, task: Task, limit: int = 200) -> float:
    """The share of the first `limit` test examples that the model gets right without having learnt the task.

    classification: the label's own text is likeliest after the text, so labels have to be such as "." and "?"
    choice:         the candidate is likeliest after the context, by the mean over its tokens
    entailment and similarity: the answer is yes if the first text raises the likelihood of the second by more than it does
                    in the median example

    The last has to see the other examples, but not their labels.
    """
    examples = task.test[:limit]
    labels = [example.label for example in examples]
    if task.kind in ("classification", "choice"):
        options = [task.labels if task.kind == "classification" else example.texts[1:] for example in examples]
        gap = "" if task.kind == "classification" else GAP
        pairs = [(example.texts[0] + gap, o) for example, of_one in zip(examples, options, strict=True) for o in of_one]
        scores = iter(mean_log_likelihoods(model, tokenizer, pairs))
        chosen = [max(range(len(of_one)), key=[next(scores) for _ in of_one].__getitem__) for of_one in options]
        return sum(number == label for number, label in zip(chosen, labels, strict=True)) / len(labels)
    after = mean_log_likelihoods(model, tokenizer, [(example.texts[0] + GAP, example.texts[1]) for example in examples])
    alone = mean_log_likelihoods(model, tokenizer, [(GAP, example.texts[1]) for example in examples])
    gains = [a - b for a, b in zip(after, alone, strict=True)]
    middle = median(gains)
    return sum((gain > middle) == bool(label) for gain, label in zip(gains, labels, strict=True)) / len(labels)


@torch.no_grad()
def mean_log_likelihoods(model: GPT, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The mean over its tokens of log p(second text | first text), in nats.

    Of texts that are together longer than the context plus one, the first loses its beginning, and then the second its end.
    """
    limit, device = model.config.context_length + 1, model.head.weight.device
    encoded = [(tokenizer.encode(first), tokenizer.encode(second)[: limit - 1]) for first, second in pairs]
    windows = [(torch.cat((first[max(0, len(first) + len(second) - limit) :], second)), len(second)) for first, second in encoded]
    order = sorted(range(len(windows)), key=lambda number: len(windows[number][0]))  # windows of one batch are about as long
    result, was_training = [0.0] * len(pairs), model.training
    model.eval()
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        ids = torch.nn.utils.rnn.pad_sequence([windows[number][0] for number in numbers], batch_first=True).to(device)
        losses = F.cross_entropy(model.forward(ids[:, :-1]).mT, ids[:, 1:], reduction="none")  # (B, T)
        for number, row in zip(numbers, losses, strict=True):
            window, count = windows[number]
            result[number] = -row[len(window) - 1 - count : len(window) - 1].mean().item()
    model.train(was_training)
    return result
