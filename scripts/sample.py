"""Let a trained model continue a prompt, one character after another:

python scripts/sample.py --pretrained --prompt "ROMEO:"
echo "ROMEO:" | python scripts/sample.py outputs/RUN --temperature 0.7 --num-samples 3
"""

import argparse
import codecs
import contextlib
import importlib
import json
import os
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

try:
    from gpt.errors import UserError, one_line, printable, user_errors
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None
from gpt.cli import options as runs
from gpt.cli.options import Parser, add_checkpoint, load_models, tint, typed_text, whole_number
from gpt.files import write_text

if TYPE_CHECKING:  # --help and --list need no torch
    from torch import Generator, Tensor

    from gpt.ensemble import Ensemble
    from gpt.generate import CachedModel
    from gpt.model import GPT
    from gpt.tokenizer import Tokenizer

LARGEST_PROMPT = 2**24  # bytes
TEXTS_AT_ONCE = 32
SEPARATOR = "-" * 20 + "\n"
# Options that say how a token is drawn, by the names of gpt.generate.Sampling
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_checkpoint(parser, several=True)
    option = parser.add_argument
    option("--list", action="store_true", help="list the runs under outputs/ with their losses, and end")
    source = parser.add_mutually_exclusive_group()
    prompt = "the text to continue, in which \\n is a line break; "
    prompt += "default: standard input if it is piped, or a line break"
    source.add_argument("--prompt", type=typed_text, help=prompt)
    source.add_argument("--prompt-file", help="a UTF-8 file that holds the prompt; - for standard input")
    unknown = "leave out characters of the prompt that the model does not know"
    option("--drop-unknown", action="store_true", help=unknown)
    length = "how many tokens to write: characters, unless the run chose another tokenizer (500)"
    option("--tokens", type=whole_number(0), default=500, help=length)
    exact = "end after exactly so many; otherwise a text ends where its line does, at most a fifth later"
    option("--exact", action="store_true", help=exact)
    stop = "end a text before this string, wherever the model writes it; may be given several times"
    option("--stop", metavar="STRING", type=typed_text, action="append", default=[], help=stop)
    add_settings(parser)
    seed = "the same seed writes the same text; default: a new one each time"
    option("--seed", type=whole_number(0), help=seed)
    several = "how many texts to write; the first is shown while it grows (1)"
    option("--num-samples", type=whole_number(1), default=1, help=several)
    option("--json", action="store_true", help="print a JSON object for each text: prompt, text and seed")
    option("--out", metavar="FILE", help="write the texts into this file")
    talk = "type a line, and the model continues it, again and again; Ctrl-C stops a text, Ctrl-D ends"
    option("--interactive", action="store_true", help=talk)
    color = "tint each character by how much it, or the last of its tokens, surprised the model"
    option("--color", action="store_true", help=color)
    where = "where to compute: cpu, which is faster for one text of a small model, or gpu (cpu)"
    option("--device", choices=("cpu", "gpu"), default="cpu", help=where)
    options = parser.parse_args(arguments)
    for name in ("interactive", "color"):
        if getattr(options, name) and (options.num_samples > 1 or options.json or options.out):
            parser.error(f"--{name} shows one text; leave out --num-samples, --json and --out")
    if options.interactive and options.prompt_file == "-":
        advice = "give --prompt or a file as the beginning"
        parser.error(f"--interactive reads lines from standard input; {advice}")
    return options


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options in SETTINGS."""
    option = parser.add_argument
    temperature = "0: always the likeliest token; 1: the model's own odds (0.8)"
    option("--temperature", type=float, default=0.8, help=temperature)
    option("--top-k", type=whole_number(1), help="choose among the k likeliest tokens")
    top_p = "choose among the likeliest tokens whose probabilities sum to p"
    option("--top-p", type=float, help=top_p)
    min_p = "choose among the tokens that are at least p times as likely as the likeliest"
    option("--min-p", type=float, help=min_p)
    repeated = "above 1: make what the model sees of the text less likely to be written again"
    option("--repetition-penalty", type=float, metavar="X", help=repeated)


def read_prompt(options: argparse.Namespace) -> str | None:
    """The prompt, which may be empty, or None if there is none: no option, and nothing on standard input."""
    if options.prompt is not None:
        return str(options.prompt)
    from_stdin = options.prompt_file in (None, "-")
    if options.prompt_file is None and sys.stdin.isatty():
        return None
    name = "standard input" if from_stdin else options.prompt_file
    try:
        with sys.stdin.buffer if from_stdin else open(name, "rb") as file:
            content = file.read(LARGEST_PROMPT + 1)
        if len(content) > LARGEST_PROMPT:
            advice = "the model sees the end, so give that alone"
            raise UserError(f"prompt = {name}: more than {LARGEST_PROMPT:,} bytes; {advice}")
        prompt = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"prompt = {name}: {error.strerror}; give a file that can be read") from None
    except UnicodeDecodeError as error:
        raise UserError(f"prompt = {name}: not UTF-8 at byte {error.start}; convert it to UTF-8") from None
    return prompt if prompt or options.prompt_file else None


class TextWriter:
    """A model that writes texts on standard output, as the options say."""

    def __init__(self, model: "GPT | Ensemble", tokenizer: "Tokenizer", options: argparse.Namespace) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.device = choose_device(options.device)
        self.model.to(self.device)
        self.seed = secrets.randbelow(10**6) if options.seed is None else options.seed
        self.exact = options.exact or not tokenizer.knows("\n")
        self.stops = [stop.encode() for stop in options.stop]
        self.longest = options.tokens + (0 if self.exact else options.tokens // 5)
        # A vocabulary may hold what would command a terminal
        self.show = printable if sys.stdout.isatty() else str

    def tell_seed(self) -> None:
        if self.options.seed is None:
            print(f"seed {self.seed}", file=sys.stderr)

    def generators(self, numbers: Iterable[int]) -> "list[Generator]":
        """Random numbers for each of several texts, so that no text depends on how many there are."""
        from gpt.generate import generator_of_text

        return [generator_of_text(self.seed, number, self.device) for number in numbers]

    def sample(
        self, cached: "CachedModel", ids: "Tensor", generators: "list[Generator]"
    ) -> "Iterator[Tensor]":
        from gpt.generate import generate

        settings = {name: getattr(self.options, name) for name in SETTINGS}
        return generate(cached, ids.to(self.device), self.longest, generators, **settings)

    def cached_model(self, longest: int = sys.maxsize) -> "CachedModel":
        from gpt.generate import CachedModel

        return CachedModel(self.model, longest)

    def shorten(self, pieces: Iterable[bytes]) -> Iterable[bytes]:
        from gpt.generate import until

        pieces = pieces if self.exact else up_to_line_end(pieces, self.options.tokens)
        for stop in self.stops:
            pieces = until(pieces, stop)
        return pieces

    def stream(
        self, cached: "CachedModel", ids: "Tensor", generators: "list[Generator]"
    ) -> "Iterator[Tensor]":
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
        """Print the first text while it grows, then the others. In JSON or into a file, all are alike."""
        ids = self.tokenizer.encode(prompt or self.tokenizer.default_prompt)[None]  # never nothing
        if ids.size(1) > (limit := self.model.config.context_length):
            length = f"the prompt has {ids.size(1):,} tokens; the model sees the last {limit:,}"
            print(f"note: {length}", file=sys.stderr)
        self.tell_seed()
        if not self.options.json and self.options.out is None:
            sys.stdout.write(self.show(prompt))
            deque(self.stream(self.cached_model(self.longest), ids, self.generators([0])), maxlen=0)
            for text in self.texts(ids, 1):
                print(SEPARATOR + self.show(prompt + text), flush=True)
            return
        told = {"prompt": prompt, "seed": self.seed}
        wholes = (
            json.dumps(told | {"text": text}) if self.options.json else prompt + text
            for text in self.texts(ids, 0)
        )
        if self.options.out is not None:
            between = "\n" if self.options.json else f"\n{SEPARATOR}"
            write_text(self.options.out, between.join(wholes) + "\n")
            print(f"note: written into {self.options.out}", file=sys.stderr)
        for whole in () if self.options.out is not None else wholes:
            print(whole, flush=True)

    def texts(self, ids: "Tensor", start: int) -> Iterator[str]:
        """What follows the prompt in each text from number `start` on, many of which are drawn at once."""
        for first in range(start, self.options.num_samples, TEXTS_AT_ONCE):
            numbers = range(first, min(first + TEXTS_AT_ONCE, self.options.num_samples))
            for text in self.write_several(ids, numbers):
                yield b"".join(self.shorten(text)).decode(errors="replace")

    def write_several(self, ids: "Tensor", numbers: range) -> list[list[bytes]]:
        """The pieces of several texts, drawn until the last of them holds a string to stop at."""
        texts: list[list[bytes]] = [[] for _ in numbers]
        growing, cached = texts, self.cached_model(self.longest)
        for drawn in self.sample(cached, ids.expand(len(texts), -1), self.generators(numbers)):
            for text, id in zip(texts, drawn.tolist(), strict=True):
                text.append(self.tokenizer.pieces[id])
            # Its bytes come from at most as many pieces, the last of which completes it
            for stop in self.stops:
                growing = [text for text in growing if stop not in b"".join(text[-len(stop) :])]
            if not growing:
                break
        return texts

    def converse(self, beginning: str | None) -> None:
        """Continue after each line that is typed, with all that came before in mind, until the input ends.

        Ctrl-C stops a text, and the next line continues there. A line that cannot be encoded is refused and
        changes nothing.
        """
        import torch

        print("Type a line, and the model continues. Ctrl-C stops a text, Ctrl-D ends.", file=sys.stderr)
        self.tell_seed()
        cached, generators = self.cached_model(), self.generators([0])
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
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # the tokenizer refuses what is not UTF-8
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
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        raise UserError("device = gpu: PyTorch finds none on this machine; leave it out for the CPU")
    return accelerator.type


def up_to_line_end(pieces: Iterable[bytes], count: int) -> Iterator[bytes]:
    """The first `count` pieces of a text, and more up to the end of the line, without its break."""
    for number, piece in enumerate(pieces, start=1):
        if number >= count and b"\n" in piece:
            yield piece.partition(b"\n")[0]
            return
        yield piece


def list_runs(outputs: Path = Path("outputs")) -> str:
    """A table of the runs from which one can sample, newest first. Raises UserError if there is none."""
    lines = [f"{'loss':>6}  {'steps':>7}  {'age':>7}  run"]
    found = {run: time for run, time in runs.find_runs(outputs).items() if not runs.is_fine_tuned(run)}
    for run, worked_at in found.items():
        steps, loss = runs.progress(run)
        shown, since = "-" if loss is None else f"{loss:.4f}", age(time.time() - worked_at)
        mark = "" if runs.has_ended(run) else " *"
        lines.append(f"{shown:>6}  {steps:>7,}  {since:>7}  {one_line(run)}{mark}")
    if not found:
        raise UserError(f"folder = {outputs}: no run in it; train one first: python scripts/train.py")
    lines += ["*: has not ended"] * any(line.endswith(" *") for line in lines)
    return "\n".join([*lines, "loss: the lowest validation loss, in nats per character"])


def age(seconds: float) -> str:
    """A time span in its largest unit: "5 min"."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)

    if options.list:
        print(list_runs())
        return

    from gpt.generate import Sampling
    from gpt.machine import keep_freed_memory

    keep_freed_memory()
    Sampling(**{name: getattr(options, name) for name in SETTINGS})  # refuses what has no meaning
    model, tokenizer, _ = load_models(options.checkpoint or [])
    for stop in options.stop:
        if unknown := {char for char in stop if not tokenizer.knows(char)} or not stop:
            reason = f"the model never writes {', '.join(map(repr, unknown))}" if stop else "is in every text"
            raise UserError(f"stop = {stop!r}: {reason}; give another string, or leave it out")
    writer = TextWriter(model, tokenizer, options)
    is_given = options.prompt is not None or options.prompt_file is not None
    prompt = read_prompt(options) if is_given or not options.interactive else None
    if options.drop_unknown and prompt is not None:
        prompt = tokenizer.drop_unknown(prompt)
    if options.interactive:
        writer.converse(prompt)
    else:
        writer.write(tokenizer.default_prompt if prompt is None else prompt)


def stop_at_once(signal_number: int, frame: object) -> NoReturn:
    """End the process on Ctrl-C. While libraries are imported, a KeyboardInterrupt can get lost."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def cli() -> None:
    with user_errors():
        signal.signal(signal.SIGINT, stop_at_once)
        main()


if __name__ == "__main__":
    cli()
