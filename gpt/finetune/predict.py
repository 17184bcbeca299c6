"""Who answers a task's questions: a fine-tuned model, guessing, counting, a language model as it is."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import NormalDist, fmean, mode
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt.checkpoint import assemble, read, refusal
from gpt.errors import UserError, shorten
from gpt.finetune.model import Classifier, collate, to_sequences
from gpt.finetune.tasks import KINDS, TEXTS, Example, Task
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

GAP = "\n\n"  # stands between two speeches
BATCH = 32  # sequences


class Answerer:
    """The fine-tuned model of a checkpoint. Raises UserError for a language model, and as `assemble` does."""

    def __init__(self, path: Path) -> None:
        content = read(path)
        self.task = content["gpt"].get("task")
        if self.task is None:
            advice = "fine-tune it first: python scripts/finetune.py init=RUN task=mark"
            raise refusal(path, "a language model, which answers no questions about texts", advice)
        model, self.tokenizer, _ = assemble(path, content)
        self.model = cast(Classifier, model)

    def probabilities(self, texts: Sequence[str]) -> dict[str, float]:
        """The probability of each label or candidate. Raises UserError for texts that do not fit the task."""
        kind, longest = self.model.kind, min(self.task["max_length"], self.model.config.context_length)
        if min(len(texts), 3) != KINDS[kind] or not all(text.strip() for text in texts):
            reason = f"{shorten(self.task['name'])} is about {TEXTS[KINDS[kind]]}; separate several by tabs"
            raise UserError(f"text = {shorten(' | '.join(texts))}: {reason}, none of them empty")
        sequences = to_sequences(Example(tuple(texts), 0), kind, self.tokenizer, longest)
        scores = self.model.exact_scores(collate([(sequences, 0)]))[0]
        names = map(str, range(1, len(scores) + 1)) if kind == "choice" else self.task["labels"]
        return dict(zip(names, scores.softmax(dim=0).tolist(), strict=True))


def majority_accuracy(task: Task) -> float:
    """The share of test examples with the label that is most frequent in training."""
    return share_right([mode(example.label for example in task.train)] * len(task.test), task.test)


def share_right(found: Iterable[int], examples: Sequence[Example]) -> float:
    """The share of examples whose label was found."""
    return fmean(label == example.label for label, example in zip(found, examples, strict=True))


def naive_bayes_accuracy(task: Task) -> float | None:
    """The share that a multinomial naive Bayes of character n-grams gets right. None without scikit-learn."""
    # Rennie et al. 2003, *Tackling the Poor Assumptions of Naive Bayes Text Classifiers*, discuss this model
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.naive_bayes import MultinomialNB
        from sklearn.pipeline import make_pipeline
    except ImportError:
        return None
    hashing = HashingVectorizer(analyzer=features, n_features=2**18, norm=None, alternate_sign=False)
    model = make_pipeline(hashing, MultinomialNB())
    if task.kind != "choice":
        model.fit(*zip(*task.train, strict=True))
        return share_right(model.predict([example.texts for example in task.test]), task.test)
    model.fit(*zip(*(pair for example in task.train for pair in pairs_of(example)), strict=True))
    right = (model.predict_log_proba([texts for texts, _ in pairs_of(example)]) for example in task.test)
    return share_right((of_pairs[:, 1].argmax() for of_pairs in right), task.test)


def features(texts: Sequence[str]) -> list[str]:
    """The sequences of 1 to 5 characters in each text, marked with its number, and those that both have."""
    grams = [[text[i : i + n] for n in range(1, 6) for i in range(len(text) - n + 1)] for text in texts]
    shared = set(grams[0]) & set(grams[1]) if len(texts) == 2 else set()
    marked = [f"{number}{gram}" for number, of_text in enumerate(grams) for gram in of_text]
    return marked + [f"={gram}" for gram in shared]


def pairs_of(choice: Example) -> list[Example]:
    """A choice as one pair of context and candidate for each, with the label 1 for the right one."""
    context, *candidates = choice.texts
    return [Example((context, text), int(number == choice.label)) for number, text in enumerate(candidates)]


def zero_shot_accuracy(model: GPT, tokenizer: Tokenizer, task: Task) -> float:
    """The share of test examples that a language model gets right without fine-tuning ([G] section 5).

    classification: the label's own text is likeliest after the text, so labels have to be such as "." and "?"
    choice: the context raises the likelihood of the candidate by more than it does that of the others
    else: yes if the first text raises the likelihood of the second by more than it does in the median example

    Likelihoods are means over tokens of their logarithms. How much the first text raises them tells more than
    how likely the second one is then, which depends above all on its words.
    """
    examples = task.test
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
    """The mean over its tokens of log p(second text | first text), in nats, for each of N pairs (N,)."""
    # Of pairs that are too long, the first text loses its beginning, and then the second its end
    limit, device = model.config.context_length + 1, model.head.weight.device
    seconds = [tokenizer.encode(second)[: limit - 1] for _, second in pairs]
    firsts = [tokenizer.encode(first) for first, _ in pairs]
    windows = [torch.cat(ids)[-limit:] for ids in zip(firsts, seconds, strict=True)]
    order = sorted(range(len(pairs)), key=lambda number: len(windows[number]))  # less padding in a batch
    result, was_training = torch.zeros(len(pairs)), model.training
    model.eval()
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        ids = pad_sequence([windows[number] for number in batch], batch_first=True).to(device)
        losses = F.cross_entropy(model.forward(ids[:, :-1]).mT, ids[:, 1:], reduction="none")  # (B, T)
        for number, row in zip(batch, losses, strict=True):
            result[number] = -row[: len(windows[number]) - 1][-len(seconds[number]) :].mean()
    model.train(was_training)
    return result


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where the true accuracy lies (Wilson 1927, *Probable Inference, the Law of Succession*)."""
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), correct / total
    centre = share + z * z / (2 * total)
    reach = z * ((share * (1 - share) + z * z / (4 * total)) / total) ** 0.5
    return (centre - reach) / (1 + z * z / total), (centre + reach) / (1 + z * z / total)
