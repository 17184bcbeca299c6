"""Who answers a task's questions: a fine-tuned model, guessing, counting, a language model as it is."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import NormalDist, fmean
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gpt.checkpoint import assemble, read, refusal
from gpt.errors import UserError, shorten
from gpt.finetune.model import Classifier, Inputs, collate, to_sequences
from gpt.finetune.tasks import KINDS, TEXTS, Example, Task
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

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
        self.drop_unknown = bool(self.task.get("drop_unknown"))
        self.model = cast(Classifier, model)

    def probabilities(self, texts: Sequence[str]) -> dict[str, float]:
        """The probability of each label or candidate. Raises UserError for texts that do not fit the task."""
        kind, longest = self.model.kind, min(self.task["max_length"], self.model.config.context_length)
        known = tuple(map(self.tokenizer.drop_unknown, texts) if self.drop_unknown else texts)
        if min(len(texts), 3) != KINDS[kind] or not all(text.strip() for text in known):
            reason = f"{shorten(self.task['name'])} is about {TEXTS[KINDS[kind]]}; separate several by tabs"
            raise UserError(f"text = {shorten(' | '.join(texts))}: {reason}, none of them empty or unknown")
        sequences = to_sequences(Example(known, 0), kind, self.tokenizer, longest)
        scores = self.model.exact_scores(collate([(sequences, 0)]))[0]
        names = map(str, range(1, len(scores) + 1)) if kind == "choice" else self.task["labels"]
        return dict(zip(names, scores.softmax(dim=0).tolist(), strict=True))


def share_right(found: Iterable[int], examples: Sequence[Example]) -> float:
    """The share of examples whose label was found."""
    return fmean(label == example.label for label, example in zip(found, examples, strict=True))


def naive_bayes_accuracy(task: Task) -> float | None:
    """The share that a multinomial naive Bayes of character n-grams gets right. None without scikit-learn."""
    # Rennie et al. 2003, *Tackling the Poor Assumptions of Naive Bayes Text Classifiers*, discuss this model.
    # That of scikit-learn has a dense table, of 2 MB for each label; here no more is kept than was counted
    try:
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import HashingVectorizer
    except ImportError:
        return None
    hashing = HashingVectorizer(analyzer=features, n_features=2**18, norm=None, alternate_sign=False)
    is_choice, test = task.kind == "choice", task.test
    train = [pair for example in task.train for pair in pairs_of(example)] if is_choice else task.train
    given = [example.label for example in train]
    of_label = csr_matrix((np.ones(len(given)), (given, range(len(given)))))  # (labels, examples)
    counts = of_label @ hashing.transform(example.texts for example in train)  # (labels, features)
    prior, totals = np.bincount(given), np.asarray(counts.sum(axis=1)).ravel() + counts.shape[1]
    with np.errstate(divide="ignore"):  # a label may be in the test part alone
        prior = np.log(prior)
    logs, found = counts.log1p().T.tocsr(), []  # of counts, each one more than it is
    for example in test:
        asked = pairs_of(example) if is_choice else [example]
        grams = hashing.transform(of_one.texts for of_one in asked)
        scores = (grams @ logs).toarray() - grams.sum(axis=1).A1[:, None] * np.log(totals) + prior
        found.append((scores[:, 1] - scores[:, 0] if is_choice else scores[0]).argmax())
    return share_right(found, test)


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


@torch.no_grad()
def zero_shot_accuracy(model: GPT, tokenizer: Tokenizer, task: Task, heuristic: str = "paper") -> float:
    """The share of test examples that a language model gets right without fine-tuning.

    paper ([G] section 5): the label or candidate with the highest mean log-likelihood after the text. It has
    nothing for two texts, which are asked as by `gain`.
    gain (ours): by how much the first text raises that of the second. Of two texts in either order the larger
    gain counts, and the answer is yes above the median of all examples.

    A label's own text is what is likely or not, so labels have to be such as "." and "?".
    """
    device, kind, examples = model.head.weight.device, task.kind, task.test
    asked = Classifier(model.config, kind, 1).eval()  # whose new tokens stand for a line break and a blank
    asked.take_over(model, None, tokenizer)
    asked.to(device)

    def likelihoods(texts: Iterable[tuple[str, ...]]) -> Tensor:
        """log p of the last of one or two texts, on average over its tokens, for each of N (N,)."""
        kinds, length = ("", "classification", "entailment"), model.config.context_length
        each = [(to_sequences(Example(of, 0), kinds[len(of)], tokenizer, length), 0) for of in texts]
        batches: DataLoader[Inputs] = DataLoader(each, BATCH, collate_fn=collate)  # type: ignore[arg-type]
        on_device = [batch.to(device) for batch in batches]
        return torch.cat([asked.mean_log_likelihood(asked.activations(it.ids), it) for it in on_device]).cpu()

    pairs = [(example.texts[0], text) for example in examples for text in example.texts[1:]]
    pairs += [(second, first) for (first, second), _ in examples] if kind == "similarity" else []
    if kind == "classification":  # texts that differ in the label alone
        scores = likelihoods((e.texts[0] + label,) for e in examples for label in task.labels)
    else:
        scores = likelihoods(pairs)
        if heuristic == "gain" or kind != "choice":
            scores -= likelihoods(("", second) for _, second in pairs)
    if kind in ("classification", "choice"):
        return share_right(scores.view(len(examples), -1).argmax(dim=1).tolist(), examples)
    scores = scores.view(-1, len(examples)).amax(dim=0)
    return share_right((scores > scores.median()).int().tolist(), examples)


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where the true accuracy lies (Wilson 1927, *Probable Inference, the Law of Succession*)."""
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), correct / total
    centre = share + z * z / (2 * total)
    reach = z * ((share * (1 - share) + z * z / (4 * total)) / total) ** 0.5
    return (centre - reach) / (1 + z * z / total), (centre + reach) / (1 + z * z / total)
