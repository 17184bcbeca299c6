"""Texts on standard output while a model writes them: `scripts/sample.py`."""

import argparse
import codecs
import contextlib
import importlib
import secrets
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

from gpt.ensemble import Ensemble
from gpt.errors import UserError, printable
from gpt.generate import CachedModel, generate, generator_of_text, until
from gpt.interop.numpy_decoder import NumpyCachedModel
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

TEXTS_AT_ONCE = 32
SEPARATOR = "-" * 20 + "\n"
# From which surprise on, in nats, a character has which of a terminal's 256 colours: black on ever darker red
TINTS = ((5.0, "48;5;203;30"), (3.0, "48;5;210;30"), (1.5, "48;5;217;30"), (0.5, "48;5;224;30"))


class TextWriter:
    """A model that writes texts with the options of `scripts/sample.py`."""

    def __init__(self, model: GPT | Ensemble, tokenizer: Tokenizer, options: argparse.Namespace) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.device = choose_device(options.device)
        self.model.to(self.device)
        self.seed = secrets.randbelow(10**6) if options.seed is None else options.seed
        self.exact = options.exact or not tokenizer.knows("\n")
        self.stop = (options.stop or "").encode(errors="surrogateescape")
        self.longest = options.tokens + (0 if self.exact else options.tokens // 5)
        # A vocabulary may hold what would command a terminal
        self.show = printable if sys.stdout.isatty() else str

    def tell_seed(self) -> None:
        if self.options.seed is None:
            print(f"seed {self.seed}", file=sys.stderr)

    def generators(self, numbers: Iterable[int]) -> list[torch.Generator]:
        """Random numbers for each of several texts, so that no text depends on how many there are."""
        return [generator_of_text(self.seed, number, self.device) for number in numbers]

    def sample(self, cached: CachedModel, ids: Tensor, generators: list[torch.Generator]) -> Iterator[Tensor]:
        settings = self.options.temperature, self.options.top_k, self.options.top_p
        return generate(cached, ids.to(self.device), self.longest, *settings, generators)

    def shorten(self, pieces: Iterable[bytes]) -> Iterable[bytes]:
        pieces = pieces if self.exact else up_to_line_end(pieces, self.options.tokens)
        return until(pieces, self.stop) if self.stop else pieces

    def stream(self, cached: CachedModel, ids: Tensor, generators: list[torch.Generator]) -> Iterator[Tensor]:
        """Print one text while it grows. Yields each token drawn (1,), after what it adds is printed."""
        drawn: deque[Tensor] = deque()
        surprises: deque[float] = deque()  # one for each byte that has not been printed

        def pieces() -> Iterator[bytes]:
            for token in self.sample(cached, ids, generators):
                piece, surprise = self.tokenizer.decode_bytes(token), 0.0
                if self.options.color:
                    surprise = -cached.logits.log_softmax(dim=-1)[0, token[0]].item()
                surprises.extend([surprise] * len(piece))
                drawn.append(token)
                yield piece

        characters = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end within a character
        for piece in self.shorten(pieces()):
            for byte in piece:
                sys.stdout.write(tint(self.show(characters.decode(bytes([byte]))), surprises.popleft()))
            sys.stdout.flush()
            while drawn:
                yield drawn.popleft()
        print(self.show(characters.decode(b"", final=True)), flush=True)

    def write(self, prompt: str) -> None:
        """Print the first text while it grows, then the others, many of which are sampled at once."""
        ids = self.tokenizer.encode(prompt or self.tokenizer.default_prompt)[None]  # never nothing
        if ids.size(1) > (limit := self.model.config.context_length):
            length = f"the prompt has {ids.size(1):,} tokens; the model sees the last {limit:,}"
            print(f"note: {length}", file=sys.stderr)
        self.tell_seed()
        sys.stdout.write(self.show(prompt))
        cached = NumpyCachedModel(self.model, self.longest)
        deque(self.stream(cached, ids, self.generators([0])), maxlen=0)
        for start in range(1, self.options.num_samples, TEXTS_AT_ONCE):
            numbers = range(start, min(start + TEXTS_AT_ONCE, self.options.num_samples))
            for text in self.write_several(ids, numbers):
                whole = prompt + b"".join(self.shorten(text)).decode(errors="replace")
                print(SEPARATOR + self.show(whole), flush=True)

    def write_several(self, ids: Tensor, numbers: range) -> list[list[bytes]]:
        """The pieces of several texts, drawn until the last of them holds the string to stop at."""
        texts: list[list[bytes]] = [[] for _ in numbers]
        growing, cached = texts, NumpyCachedModel(self.model, self.longest)
        for drawn in self.sample(cached, ids.expand(len(texts), -1), self.generators(numbers)):
            for text, id in zip(texts, drawn.tolist(), strict=True):
                text.append(self.tokenizer.pieces[id])
            if self.stop:  # its bytes come from at most as many pieces, the last of which completes it
                growing = [text for text in growing if self.stop not in b"".join(text[-len(self.stop) :])]
                if not growing:
                    break
        return texts

    def converse(self, beginning: str | None) -> None:
        """Continue after each line that is typed, with all that came before in mind, until the input ends.

        Ctrl-C stops a text, and the next line continues there. A line that cannot be encoded is refused and
        changes nothing.
        """
        print("Type a line, and the model continues. Ctrl-C stops a text, Ctrl-D ends.", file=sys.stderr)
        self.tell_seed()
        cached, generators = NumpyCachedModel(self.model), self.generators([0])
        unread = torch.empty(1, 0, dtype=torch.int64)
        interrupts: list[int] = []
        line_end = "\n" if self.tokenizer.knows("\n") else ""
        lines = (line + line_end for line in typed_lines())
        for text in chain([] if beginning is None else [beginning], lines):
            try:
                unread = torch.cat((unread, self.tokenizer.encode(text)[None]), dim=1)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                continue
            if not unread.size(1):
                continue
            interrupts.clear()
            signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
            for token in self.stream(cached, unread, generators):
                unread = token.cpu()[None]
                if interrupts:
                    print()
                    break


def typed_lines() -> Iterator[str]:
    """The lines of standard input. Ctrl-C drops what has been typed of a line."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # makes the arrow keys work
    while True:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield input("> ")
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


def choose_device(name: str) -> str:
    """The name that PyTorch has for `cpu` or `gpu`. Raises UserError if there is no GPU."""
    if name == "cpu":
        return name
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        raise UserError("device = gpu: PyTorch finds none on this machine; leave it out for the CPU")
    return accelerator.type


def tint(char: str, surprise: float) -> str:
    """The character in the colours for its surprise. Line breaks have none: they would colour whole lines."""
    color = next((color for least, color in TINTS if surprise >= least), None)
    return char if color is None or char in ("", "\n") else f"\x1b[{color}m{char}\x1b[0m"


def up_to_line_end(pieces: Iterable[bytes], count: int) -> Iterator[bytes]:
    """The first `count` pieces of a text, and more up to the end of the line, without its break."""
    for number, piece in enumerate(pieces, start=1):
        if number >= count and b"\n" in piece:
            yield piece.partition(b"\n")[0]
            return
        yield piece
