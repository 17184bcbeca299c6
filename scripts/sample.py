"""Let a trained model write on from a prompt, one character after another:

python scripts/sample.py --prompt "ROMEO:"
echo "ROMEO:" | python scripts/sample.py outputs/RUN --temperature 0.7 --num-samples 3
"""

import argparse
import codecs
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from gpt.cli.options import Parser
from gpt.settings import UserError, convert, printable, user_errors

if TYPE_CHECKING:
    from torch import Tensor

    from gpt.model import GPT
    from gpt.tokenizer import Tokenizer

TEXTS_AT_ONCE = 32
LARGEST_PROMPT = 2**24  # bytes
SEPARATOR = "-" * 20 + "\n"
NUMBERS: dict[str, tuple[Any, Any, str]] = {  # option: its type, default and help
    "tokens": (int, 500, "how many tokens to write, which are characters unless the run chose another tokenizer (500)"),
    "temperature": (float, 0.8, "0: always the likeliest token; 1: the model's own odds (0.8)"),
    "top-k": (int | None, None, "choose among the k likeliest tokens"),
    "top-p": (float | None, None, "choose among the likeliest tokens whose probabilities sum to p"),
    "seed": (int, 0, "the same seed writes the same text (0)"),
    "num-samples": (int, 1, "how many texts to write; the first is shown while it grows (1)"),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "checkpoint", nargs="?", help="a run folder (its best checkpoint) or a .ckpt file; default: the newest run in outputs/"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="the text to write on from; default: standard input if it is piped, or a line break")
    source.add_argument("--prompt-file", help="a UTF-8 file that holds the prompt; - for standard input")
    for name, (_, default, text) in NUMBERS.items():
        parser.add_argument(f"--{name}", default=default, help=text)
    options = parser.parse_args(arguments)
    for name, (kind, _, _) in NUMBERS.items():
        attribute = name.replace("-", "_")
        setattr(options, attribute, convert(as_number(getattr(options, attribute)), kind, f"--{name}"))
    for name, smallest in (("tokens", 0), ("seed", 0), ("num_samples", 1)):
        if (value := getattr(options, name)) < smallest:
            raise UserError(f"--{name.replace('_', '-')} = {value}: too small; set it to at least {smallest}")
    return options


def as_number(value: Any) -> Any:
    """The number that a text stands for, such as 1e3. Anything else stays as it is."""
    for kind in (int, float):
        try:
            return kind(value) if isinstance(value, str) else value
        except ValueError:
            pass
    return value


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


def write_texts(model: "GPT", tokenizer: "Tokenizer", prompt: str, options: argparse.Namespace) -> None:
    """Print the first text while it grows, then the others, many of which are sampled at once.

    Each text has random numbers of its own. So the first does not depend on how many there are, and the others do only as far
    as batches of other sizes round differently.
    """
    from gpt.generate import generate, generator_of_text

    context = tokenizer.encode(prompt or tokenizer.default_prompt)  # the model cannot start from nothing
    if len(context) > (limit := model.config.context_length):
        print(f"note: the prompt has {len(context):,} tokens; the model sees the last {limit:,}", file=sys.stderr)

    def sample(indices: range) -> Iterator["Tensor"]:
        generators = [generator_of_text(options.seed, index) for index in indices]
        settings = options.tokens, options.temperature, options.top_k, options.top_p
        return generate(model, context.expand(len(indices), -1), *settings, generators)

    show = printable if sys.stdout.isatty() else str  # a vocabulary may hold what would command a terminal
    sys.stdout.write(show(prompt))
    characters = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end within a character
    for ids in sample(range(1)):
        sys.stdout.write(show(characters.decode(tokenizer.decode_bytes(ids))))
        sys.stdout.flush()
    print(show(characters.decode(b"", final=True)), flush=True)
    for start in range(1, options.num_samples, TEXTS_AT_ONCE):
        texts: list[list[int]] = [[] for _ in range(min(TEXTS_AT_ONCE, options.num_samples - start))]
        for ids in sample(range(start, start + len(texts))):
            for text, id in zip(texts, ids.tolist(), strict=True):
                text.append(id)
        for text in texts:
            print(SEPARATOR + show(prompt + tokenizer.decode(text)), flush=True)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)

    from gpt.checkpoint import find, load
    from gpt.generate import check_sampling

    check_sampling(options.temperature, options.top_k, options.top_p)
    model, tokenizer, _ = load(find(options.checkpoint))
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
