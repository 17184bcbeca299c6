import random
from dataclasses import dataclass

from gpt.settings import UserError


@dataclass(frozen=True)
class Example:
    texts: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class TaskConfig:
    name: str
    kind: str
    path: str | None
    columns: list[str]
    label: str


@dataclass(frozen=True)
class Task:
    name: str
    kind: str
    labels: list[str]
    train: list
    test: list


def speeches(text):
    return [s for p in text.split("\n\n") if ":\n" in p for s in [p.split(":\n", 1)[1]]]


def mark(text):
    marks = ".?!"
    return [Example((s[:-1],), marks.index(s[-1])) for s in speeches(text) if s and s[-1] in marks and len(s) < 200]


def nxt(text, rng):
    sp = [s[:60] for s in speeches(text)]
    out = []
    for a, b in zip(sp, sp[1:]):
        c = [b] + rng.sample(sp, 3)
        o = list(range(4))
        rng.shuffle(o)
        out.append(Example((a, *[c[i] for i in o]), o.index(0)))
    return out


def make_task(config, train_text, test_text, seed):
    rng = random.Random(0)
    if config.name == "mark":
        tr, te = mark(train_text), mark(test_text)
        rng.shuffle(tr)
        return Task("mark", "classification", ["full stop", "question", "exclamation"], tr[:2000], te)
    if config.name == "next_speech":
        return Task("next_speech", "choice", ["1", "2", "3", "4"], nxt(train_text, rng)[:1000], nxt(test_text, rng)[:400])
    raise UserError("task = x: unknown; y")
