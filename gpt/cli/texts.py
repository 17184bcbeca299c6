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
from gpt.generate import Reader, generate, generator_of_text, until
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

TEXTS_AT_ONCE = 32
SEPARATOR = "-" * 20 + "\n"
# From which surprise on, in nats, a character has which colours of the 256 that terminals know: black on ever darker red
TINTS = ((5.0, "48;5;203;30"), (3.0, "48;5;210;30"), (1.5, "48;5;217;30"), (0.5, "48;5;224;30"))


class Author:
    """A model that writes texts with the options of `scripts/sample.py`."""

    def __init__(self, model: GPT | Ensemble, tokenizer: Tokenizer, options: argparse.Namespace) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.device = choose_device(options.device)
        self.model.to(self.device)
        self.seed = secrets.randbelow(10**6) if options.seed is None else options.seed
        self.exact = options.exact or not tokenizer.knows("\n")
        self.stop = (options.stop or "").encode(errors="surrogateescape")
        self.longest = options.tokens + (0 if self.exact else options.tokens // 5)
        self.show = (
            printable if sys.stdout.isatty() else str
        )  # a vocabulary may hold what would command a terminal

    def tell_seed(self) -> None:
        if self.options.seed is None:
            print(f"seed {self.seed}", file=sys.stderr)

    def sample(
        self, model: GPT | Ensemble | Reader, ids: Tensor, generators: list[torch.Generator]
    ) -> Iterator[Tensor]:
        settings = self.options.temperature, self.options.top_k, self.options.top_p
        return generate(model, ids.to(self.device), self.longest, *settings, generators)

    def generators(self, indices: Iterable[int]) -> list[torch.Generator]:
        """Random numbers for each of several texts. So none of them depends on how many there are."""
        return [generator_of_text(self.seed, index, self.device) for index in indices]

    def shorten(self, pieces: Iterable[bytes]) -> Iterable[bytes]:
        pieces = pieces if self.exact else up_to_line_end(pieces, self.options.tokens)
        return until(pieces, self.stop) if self.stop else pieces

    def stream(self, reader: Reader, ids: Tensor, generators: list[torch.Generator]) -> Iterator[Tensor]:
        """Print one text while it grows. Yields each token drawn (1,), after what it adds is printed."""
        drawn: deque[Tensor] = deque()
        surprises: deque[float] = deque()  # one for each byte that has not been printed

        def pieces() -> Iterator[bytes]:
            for token in self.sample(reader, ids, generators):
                piece = self.tokenizer.decode_bytes(token)
                surprise = (
                    -reader.logits.log_softmax(dim=-1)[0, token[0]].item() if self.options.color else 0.0
                )
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
        context = self.tokenizer.encode(prompt or self.tokenizer.default_prompt)[
            None
        ]  # the model cannot start from nothing
        if context.size(1) > (limit := self.model.config.context_length):
            print(
                f"note: the prompt has {context.size(1):,} tokens; the model sees the last {limit:,}",
                file=sys.stderr,
            )
        self.tell_seed()
        sys.stdout.write(self.show(prompt))
        deque(self.stream(Reader(self.model, self.longest), context, self.generators([0])), maxlen=0)
        for start in range(1, self.options.num_samples, TEXTS_AT_ONCE):
            texts: list[list[bytes]] = [
                [] for _ in range(min(TEXTS_AT_ONCE, self.options.num_samples - start))
            ]
            growing = texts
            several = context.expand(len(texts), -1)
            for ids in self.sample(self.model, several, self.generators(range(start, start + len(texts)))):
                for text, id in zip(texts, ids.tolist(), strict=True):
                    text.append(self.tokenizer.pieces[id])
                if (
                    self.stop
                ):  # a piece that completes it makes the last pieces, one for each of its bytes, contain it
                    growing = [text for text in growing if self.stop not in b"".join(text[-len(self.stop) :])]
                    if not growing:
                        break
            for text in texts:
                whole = prompt + b"".join(self.shorten(text)).decode(errors="replace")
                print(SEPARATOR + self.show(whole), flush=True)

    def converse(self, beginning: str | None) -> None:
        """Go on after each line that is typed, with all that came before in mind, until the input ends.

        Ctrl-C stops a text, and the next line goes on from there. A line that cannot be encoded is refused and changes nothing.
        """
        print("Type a line, and the model goes on. Ctrl-C stops a text, Ctrl-D ends.", file=sys.stderr)
        self.tell_seed()
        reader, generators = Reader(self.model), self.generators([0])
        unread = torch.empty(1, 0, dtype=torch.int64)
        interrupts: list[int] = []
        line_end = "\n" if self.tokenizer.knows("\n") else ""
        for text in chain(
            [] if beginning is None else [beginning], (line + line_end for line in typed_lines())
        ):
            try:
                unread = torch.cat((unread, self.tokenizer.encode(text)[None]), dim=1)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                continue
            if not unread.size(1):
                continue
            interrupts.clear()
            signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
            for token in self.stream(reader, unread, generators):
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
    """The character in the colours for its surprise. Line breaks have none, because a terminal would colour the whole line."""
    color = next((color for least, color in TINTS if surprise >= least), None)
    return char if color is None or char in ("", "\n") else f"\x1b[{color}m{char}\x1b[0m"


def up_to_line_end(pieces: Iterable[bytes], count: int) -> Iterator[bytes]:
    """The first `count` pieces of a text, and those after them to the end of the line, whose line break is left out."""
    for number, piece in enumerate(pieces, start=1):
        if number >= count and b"\n" in piece:
            yield piece.partition(b"\n")[0]
            return
        yield piece
