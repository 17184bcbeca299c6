"""The input transformations of figure 1 in Radford et al. 2018, written out by hand."""

import pytest
import torch

from gpt.finetune.inputs import collate, to_sequences
from gpt.finetune.task import Example
from gpt.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer.from_text("abcd")  # a is 0
START, DELIMITER, EXTRACT = 4, 5, 6


@pytest.mark.parametrize(
    ("kind", "texts", "sequences"),
    [
        ("classification", ("abc",), [[START, 0, 1, 2, EXTRACT]]),
        ("entailment", ("ab", "cd"), [[START, 0, 1, DELIMITER, 2, 3, EXTRACT]]),
        ("similarity", ("ab", "c"), [[START, 0, 1, DELIMITER, 2, EXTRACT], [START, 2, DELIMITER, 0, 1, EXTRACT]]),
        ("choice", ("a", "b", "cc", "d"), [[START, 0, DELIMITER, *second, EXTRACT] for second in ([1], [2, 2], [3])]),
    ],
)
def test_texts_become_sequences(kind, texts, sequences):
    assert to_sequences(Example(texts, 0), kind, TOKENIZER, length=20) == sequences


def test_long_texts_lose_what_is_far_from_the_delimiter():
    (alone,) = to_sequences(Example(("aaabcd",), 0), "classification", TOKENIZER, length=5)
    assert alone == [START, 1, 2, 3, EXTRACT]
    for texts, expected in (
        (("aaabcd", "dcbaaa"), [2, 3, DELIMITER, 3, 2]),  # half of the room each
        (("aaabcd", "d"), [1, 2, 3, DELIMITER, 3]),  # or what the other one leaves
        (("a", "dcbaaa"), [0, DELIMITER, 3, 2, 1]),
    ):
        (pair,) = to_sequences(Example(texts, 0), "entailment", TOKENIZER, length=7)
        assert pair == [START, *expected, EXTRACT]


def test_batch_is_padded_at_the_end_and_knows_the_extract_tokens():
    examples = [Example(("ab", "c"), 1), Example(("d", "abc"), 0)]
    inputs = collate([(to_sequences(example, "similarity", TOKENIZER, 20), example.label) for example in examples])
    assert inputs.ids.shape == (4, 7)
    assert inputs.labels.tolist() == [1, 0]
    assert inputs.ids[torch.arange(4), inputs.extract].tolist() == [EXTRACT] * 4
    assert inputs.ids[0].tolist() == [START, 0, 1, DELIMITER, 2, EXTRACT, 0]


@pytest.mark.parametrize(("length", "longest", "padded"), [(5, 80, 32), (32, 80, 32), (33, 80, 64), (65, 80, 80), (5, 20, 20)])
def test_batches_are_padded_to_few_lengths_but_never_beyond_the_longest(length, longest, padded):
    inputs = collate([([[START] * length], 0), ([[START] * 4], 1)], longest)
    assert inputs.ids.shape == (2, padded)
    assert inputs.extract.tolist() == [length - 1, 3]
