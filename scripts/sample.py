"""Let a trained model write on from a prompt, one character after another:

python scripts/sample.py --pretrained --prompt "ROMEO:"
echo "ROMEO:" | python scripts/sample.py outputs/RUN --temperature 0.7 --num-samples 3
"""

import argparse
import os
import signal
import sys
from typing import NoReturn

from gpt.cli.options import Parser, add_checkpoint, whole_number
from gpt.errors import UserError, user_errors

LARGEST_PROMPT = 2**24  # bytes


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_checkpoint(parser, several=True)
    parser.add_argument(
        "--list", action="store_true", help="list the runs under outputs/ with their losses, and end"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt", help="the text to write on from; default: standard input if it is piped, or a line break"
    )
    source.add_argument("--prompt-file", help="a UTF-8 file that holds the prompt; - for standard input")
    length = "how many tokens to write, which are characters unless the run chose another tokenizer (500)"
    parser.add_argument("--tokens", type=whole_number(0), default=500, help=length)
    exact = (
        "end after exactly so many; otherwise a text goes on to the end of its line, at most a fifth longer"
    )
    parser.add_argument("--exact", action="store_true", help=exact)
    stop = "end a text before this string, wherever the model writes it; the prompt may hold it"
    parser.add_argument("--stop", metavar="STRING", help=stop)
    temperature = "0: always the likeliest token; 1: the model's own odds (0.8)"
    parser.add_argument("--temperature", type=float, default=0.8, help=temperature)
    parser.add_argument("--top-k", type=whole_number(1), help="choose among the k likeliest tokens")
    parser.add_argument(
        "--top-p", type=float, help="choose among the likeliest tokens whose probabilities sum to p"
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0),
        help="the same seed writes the same text; default: a new one each time",
    )
    several = "how many texts to write; the first is shown while it grows (1)"
    parser.add_argument("--num-samples", type=whole_number(1), default=1, help=several)
    talk = "type a line, and the model goes on from there, again and again; Ctrl-C stops a text, Ctrl-D ends"
    parser.add_argument("--interactive", action="store_true", help=talk)
    color = "tint each character by how much it surprised the model; of a character of several tokens, the last counts"
    parser.add_argument("--color", action="store_true", help=color)
    where = "where to compute: cpu, which is faster for one text of a small model, or gpu (cpu)"
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help=where)
    options = parser.parse_args(arguments)
    if options.num_samples > 1 and (options.interactive or options.color):
        option = "interactive" if options.interactive else "color"
        parser.error(f"--{option} shows one text; leave out --num-samples")
    if options.interactive and options.prompt_file == "-":
        parser.error(
            "--interactive reads lines from standard input; give --prompt or a file as the beginning"
        )
    return options


def read_prompt(options: argparse.Namespace) -> str | None:
    """The prompt, which may be empty, or None if there is none: no option, and nothing on standard input."""
    if options.prompt is not None:
        return options.prompt.encode(errors="surrogateescape").decode(
            errors="replace"
        )  # a locale without UTF-8 hides its bytes
    from_stdin = options.prompt_file in (None, "-")
    if options.prompt_file is None and sys.stdin.isatty():
        return None
    name = "standard input" if from_stdin else options.prompt_file
    try:
        with sys.stdin.buffer if from_stdin else open(name, "rb") as file:
            content = file.read(LARGEST_PROMPT + 1)
        if len(content) > LARGEST_PROMPT:
            raise UserError(
                f"prompt = {name}: more than {LARGEST_PROMPT:,} bytes; the model sees the end, so give that alone"
            )
        prompt = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"prompt = {name}: {error.strerror}; give a file that can be read") from None
    except UnicodeDecodeError as error:
        raise UserError(f"prompt = {name}: not UTF-8 at byte {error.start}; convert it to UTF-8") from None
    return prompt if prompt or options.prompt_file else None


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)

    from gpt.cli.runs import list_runs, load_models

    if options.list:
        print(list_runs())
        return

    from gpt.generate import check_sampling
    from gpt.machine import keep_freed_memory

    keep_freed_memory()
    check_sampling(options.temperature, options.top_k, options.top_p)
    if options.stop == "":
        raise UserError("stop = '': every text contains it; give at least one character, or leave it out")
    model, tokenizer, _ = load_models(options.checkpoint or [])

    from gpt.cli.texts import Author

    if options.interactive:
        given = options.prompt is not None or options.prompt_file is not None
        Author(model, tokenizer, options).converse(read_prompt(options) if given else None)
        return
    prompt = read_prompt(options)
    Author(model, tokenizer, options).write(tokenizer.default_prompt if prompt is None else prompt)


def stop_at_once(signal_number: int, frame: object) -> NoReturn:
    """End the process on Ctrl-C. A KeyboardInterrupt can get lost while libraries are imported, and nothing needs tidying up."""
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    with user_errors():
        signal.signal(signal.SIGINT, stop_at_once)
        main()
