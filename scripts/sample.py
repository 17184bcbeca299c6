"""Let a trained model write on from a prompt, one character after another:

python scripts/sample.py --pretrained --prompt "ROMEO:"
echo "ROMEO:" | python scripts/sample.py outputs/RUN --temperature 0.7 --num-samples 3
"""

import argparse
import codecs
import os
import secrets
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NoReturn

from gpt.cli.options import Parser, add_checkpoint, whole_number
from gpt.settings import UserError, printable, user_errors

if TYPE_CHECKING:
    from torch import Tensor

    from gpt.ensemble import Ensemble
    from gpt.model import GPT
    from gpt.tokenizer import Tokenizer

TEXTS_AT_ONCE = 32
LARGEST_PROMPT = 2**24  # bytes
SEPARATOR = "-" * 20 + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_checkpoint(parser, several=True)
    parser.add_argument("--list", action="store_true", help="list the runs under outputs/ with their losses, and end")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="the text to write on from; default: standard input if it is piped, or a line break")
    source.add_argument("--prompt-file", help="a UTF-8 file that holds the prompt; - for standard input")
    length = "how many tokens to write, which are characters unless the run chose another tokenizer (500)"
    parser.add_argument("--tokens", type=whole_number(0), default=500, help=length)
    exact = "end after exactly so many; otherwise a text goes on to the end of its line, at most a fifth longer"
    parser.add_argument("--exact", action="store_true", help=exact)
    stop = "end a text before this string, wherever the model writes it; the prompt may hold it"
    parser.add_argument("--stop", metavar="STRING", help=stop)
    temperature = "0: always the likeliest token; 1: the model's own odds (0.8)"
    parser.add_argument("--temperature", type=float, default=0.8, help=temperature)
    parser.add_argument("--top-k", type=whole_number(1), help="choose among the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="choose among the likeliest tokens whose probabilities sum to p")
    parser.add_argument("--seed", type=whole_number(0), help="the same seed writes the same text; default: a new one each time")
    several = "how many texts to write; the first is shown while it grows (1)"
    parser.add_argument("--num-samples", type=whole_number(1), default=1, help=several)
    return parser.parse_args(arguments)


def read_prompt(options: argparse.Namespace) -> str | None:
    """The prompt, which may be empty, or None if there is none: no option, and nothing on standard input."""
    if options.prompt is not None:
        return options.prompt.encode(errors="surrogateescape").decode(errors="replace")  # a locale without UTF-8 hides its bytes
    from_stdin = options.prompt_file in (None, "-")
    if options.prompt_file is None and sys.stdin.isatty():
        return None
    name = "standard input" if from_stdin else options.prompt_file
    try:
        with sys.stdin.buffer if from_stdin else open(name, "rb") as file:
            content = file.read(LARGEST_PROMPT + 1)
        if len(content) > LARGEST_PROMPT:
            raise UserError(f"prompt = {name}: more than {LARGEST_PROMPT:,} bytes; the model sees the end, so give that alone")
        prompt = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"prompt = {name}: {error.strerror}; give a file that can be read") from None
    except UnicodeDecodeError as error:
        raise UserError(f"prompt = {name}: not UTF-8 at byte {error.start}; convert it to UTF-8") from None
    return prompt if prompt or options.prompt_file else None


def write_texts(model: "GPT | Ensemble", tokenizer: "Tokenizer", prompt: str, options: argparse.Namespace) -> None:
    """Print the first text while it grows, then the others, many of which are sampled at once.

    Each text has random numbers of its own. So the first does not depend on how many there are, and the others do only as far
    as batches of other sizes round differently.
    """
    from gpt.generate import generate, generator_of_text, until

    context = tokenizer.encode(prompt or tokenizer.default_prompt)  # the model cannot start from nothing
    if len(context) > (limit := model.config.context_length):
        print(f"note: the prompt has {len(context):,} tokens; the model sees the last {limit:,}", file=sys.stderr)
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    if options.seed is None:
        print(f"seed {seed}", file=sys.stderr)
    exact = options.exact or not tokenizer.knows("\n")
    stop = (options.stop or "").encode(errors="surrogateescape")
    longest = options.tokens + (0 if exact else options.tokens // 5)

    def sample(indices: range) -> Iterator["Tensor"]:
        generators = [generator_of_text(seed, index) for index in indices]
        settings = longest, options.temperature, options.top_k, options.top_p
        return generate(model, context.expand(len(indices), -1), *settings, generators)

    def shorten(pieces: Iterable[bytes]) -> Iterable[bytes]:
        pieces = pieces if exact else up_to_line_end(pieces, options.tokens)
        return until(pieces, stop) if stop else pieces

    show = printable if sys.stdout.isatty() else str  # a vocabulary may hold what would command a terminal
    sys.stdout.write(show(prompt))
    characters = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end within a character
    for piece in shorten(tokenizer.decode_bytes(ids) for ids in sample(range(1))):
        sys.stdout.write(show(characters.decode(piece)))
        sys.stdout.flush()
    print(show(characters.decode(b"", final=True)), flush=True)
    for start in range(1, options.num_samples, TEXTS_AT_ONCE):
        texts: list[list[bytes]] = [[] for _ in range(min(TEXTS_AT_ONCE, options.num_samples - start))]
        growing = texts
        for ids in sample(range(start, start + len(texts))):
            for text, id in zip(texts, ids.tolist(), strict=True):
                text.append(tokenizer.pieces[id])
            if stop:  # a piece that completes it makes the last pieces, one for each of its bytes, contain it
                growing = [text for text in growing if stop not in b"".join(text[-len(stop) :])]
                if not growing:
                    break
        for text in texts:
            print(SEPARATOR + show(prompt + b"".join(shorten(text)).decode(errors="replace")), flush=True)


def up_to_line_end(pieces: Iterable[bytes], count: int) -> Iterator[bytes]:
    """The first `count` pieces of a text, and those after them to the end of the line, whose line break is left out."""
    for number, piece in enumerate(pieces, start=1):
        if number >= count and b"\n" in piece:
            yield piece.partition(b"\n")[0]
            return
        yield piece


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)

    from gpt.cli.runs import list_runs, load_models

    if options.list:
        print(list_runs())
        return

    from gpt.generate import check_sampling

    check_sampling(options.temperature, options.top_k, options.top_p)
    if options.stop == "":
        raise UserError("stop = '': every text contains it; give at least one character, or leave it out")
    model, tokenizer, _ = load_models(options.checkpoint or [])
    prompt = read_prompt(options)
    write_texts(model, tokenizer, tokenizer.default_prompt if prompt is None else prompt, options)


def stop_at_once(signal_number: int, frame: object) -> NoReturn:
    """End the process on Ctrl-C. A KeyboardInterrupt can get lost while libraries are imported, and nothing needs tidying up."""
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    with user_errors():
        signal.signal(signal.SIGINT, stop_at_once)
        main()
