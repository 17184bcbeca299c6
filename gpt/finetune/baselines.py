"""What a task's accuracy is to be compared with: guessing, and counting without any neural network."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Any

from gpt.finetune.task import Example, Task

LONGEST = 5  # characters of an n-gram


def majority_accuracy(task: Task) -> float:
    """The share of test examples with the label that is most frequent in training."""
    ((most_frequent, _),) = Counter(example.label for example in task.train).most_common(1)
    return share_right([most_frequent] * len(task.test), task.test)


def share_right(found: Iterable[int], examples: Sequence[Example]) -> float:
    """The share of examples whose label was found."""
    are_right = [label == example.label for label, example in zip(found, examples, strict=True)]
    return sum(are_right) / len(are_right)


def naive_bayes_accuracy(task: Task) -> float | None:
    """The share that a multinomial naive Bayes of character n-grams gets right. None without scikit-learn.

    A text is described by its sequences of one to five characters. Of two texts these are kept apart, and
    those that occur in both are counted once more. A choice is learnt as pairs of the context and a candidate
    that are right or wrong, and the candidate that is likeliest to be right is chosen. Rennie et al. 2003,
    *Tackling the Poor Assumptions of Naive Bayes Text Classifiers*, discuss this model.
    """
    try:
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.naive_bayes import MultinomialNB
    except ImportError:
        return None
    hashing = HashingVectorizer(analyzer=features, n_features=2**18, norm=None, alternate_sign=False)

    def counts(examples: Iterable[Example]) -> Any:  # a sparse matrix with a row for each example
        return hashing.transform(example.texts for example in examples)

    is_choice, model = task.kind == "choice", MultinomialNB()
    train = [pair for example in task.train for pair in pairs_of(example)] if is_choice else task.train
    model.fit(counts(train), [example.label for example in train])
    if not is_choice:
        return share_right(model.predict(counts(task.test)), task.test)
    right = (model.predict_log_proba(counts(pairs_of(example)))[:, 1] for example in task.test)
    return share_right((of_pairs.argmax() for of_pairs in right), task.test)


def features(texts: Sequence[str]) -> list[str]:
    """The n-grams of each text of an example, marked with its number, and those that two texts share."""
    sizes = range(1, LONGEST + 1)
    grams = [[text[i : i + n] for n in sizes for i in range(len(text) - n + 1)] for text in texts]
    shared = set(grams[0]) & set(grams[1]) if len(texts) == 2 else set()
    marked = [f"{number}{gram}" for number, of_text in enumerate(grams) for gram in of_text]
    return marked + [f"={gram}" for gram in shared]


def pairs_of(choice: Example) -> list[Example]:
    """A choice as one pair for each candidate, with the label 1 for the right one."""
    context, *candidates = choice.texts
    return [Example((context, text), int(number == choice.label)) for number, text in enumerate(candidates)]


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where the true accuracy lies (Wilson 1927, *Probable Inference, the Law of Succession*)."""
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), correct / total
    centre = share + z * z / (2 * total)
    reach = z * ((share * (1 - share) + z * z / (4 * total)) / total) ** 0.5
    return (centre - reach) / (1 + z * z / total), (centre + reach) / (1 + z * z / total)
