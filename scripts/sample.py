"""Let a trained model continue a prompt, one character after another:

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
    option = parser.add_argument
    option("--list", action="store_true", help="list the runs under outputs/ with their losses, and end")
    source = parser.add_mutually_exclusive_group()
    prompt = "the text to continue; default: standard input if it is piped, or a line break"
    source.add_argument("--prompt", help=prompt)
    source.add_argument("--prompt-file", help="a UTF-8 file that holds the prompt; - for standard input")
    length = "how many tokens to write: characters, unless the run chose another tokenizer (500)"
    option("--tokens", type=whole_number(0), default=500, help=length)
    exact = "end after exactly so many; otherwise a text ends where its line does, at most a fifth later"
    option("--exact", action="store_true", help=exact)
    stop = "end a text before this string, wherever the model writes it; the prompt may hold it"
    option("--stop", metavar="STRING", help=stop)
    temperature = "0: always the likeliest token; 1: the model's own odds (0.8)"
    option("--temperature", type=float, default=0.8, help=temperature)
    option("--top-k", type=whole_number(1), help="choose among the k likeliest tokens")
    top_p = "choose among the likeliest tokens whose probabilities sum to p"
    option("--top-p", type=float, help=top_p)
    seed = "the same seed writes the same text; default: a new one each time"
    option("--seed", type=whole_number(0), help=seed)
    several = "how many texts to write; the first is shown while it grows (1)"
    option("--num-samples", type=whole_number(1), default=1, help=several)
    talk = "type a line, and the model continues it, again and again; Ctrl-C stops a text, Ctrl-D ends"
    option("--interactive", action="store_true", help=talk)
    color = "tint each character by how much it, or the last of its tokens, surprised the model"
    option("--color", action="store_true", help=color)
    where = "where to compute: cpu, which is faster for one text of a small model, or gpu (cpu)"
    option("--device", choices=("cpu", "gpu"), default="cpu", help=where)
    options = parser.parse_args(arguments)
    if options.num_samples > 1 and (options.interactive or options.color):
        name = "interactive" if options.interactive else "color"
        parser.error(f"--{name} shows one text; leave out --num-samples")
    if options.interactive and options.prompt_file == "-":
        advice = "give --prompt or a file as the beginning"
        parser.error(f"--interactive reads lines from standard input; {advice}")
    return options


def read_prompt(options: argparse.Namespace) -> str | None:
    """The prompt, which may be empty, or None if there is none: no option, and nothing on standard input."""
    if options.prompt is not None:
        # A locale without UTF-8 hides its bytes
        return options.prompt.encode(errors="surrogateescape").decode(errors="replace")
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


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)

    from gpt.cli.newest import list_runs, load_models

    if options.list:
        print(list_runs())
        return

    from gpt.cli.sample import TextWriter
    from gpt.generate import check_sampling
    from gpt.machine import keep_freed_memory

    keep_freed_memory()
    check_sampling(options.temperature, options.top_k, options.top_p)
    if options.stop == "":
        raise UserError("stop = '': every text contains it; give at least one character, or leave it out")
    model, tokenizer, _ = load_models(options.checkpoint or [])
    writer = TextWriter(model, tokenizer, options)
    if options.interactive:
        given = options.prompt is not None or options.prompt_file is not None
        writer.converse(read_prompt(options) if given else None)
        return
    prompt = read_prompt(options)
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
