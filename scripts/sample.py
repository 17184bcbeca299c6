"""Let a trained model write on from a prompt, character by character:

python scripts/sample.py --prompt "ROMEO:"
echo "ROMEO:" | python scripts/sample.py outputs/RUN --temperature 0.7 --num-samples 3
"""

import argparse
import codecs
import sys
from pathlib import Path

from gpt.settings import UserError, user_errors


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", nargs="?", help="a run folder (its best) or a .ckpt file; else the newest run under outputs/"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="text to write on from; else standard input, if it is piped, or a new line")
    source.add_argument("--prompt-file", help="a UTF-8 file that holds the prompt; - for standard input")
    parser.add_argument("--tokens", type=int, default=500, help="how many to write, in general characters (500)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest; 1: the model's own odds (0.8)")
    parser.add_argument("--top-k", type=int, help="choose among the k likeliest")
    parser.add_argument("--top-p", type=float, help="choose among the likeliest whose probabilities sum to p")
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same text (0)")
    parser.add_argument("--num-samples", type=int, default=1, help="how many texts; the first is shown as it grows (1)")
    return parser.parse_args(arguments)


def read_prompt(options: argparse.Namespace) -> str:
    """The prompt from wherever it was given; "" if nowhere."""
    if options.prompt is not None:
        return options.prompt
    if options.prompt_file == "-" or (options.prompt_file is None and not sys.stdin.isatty()):
        content, name = sys.stdin.buffer.read(), "standard input"
    elif options.prompt_file is None:
        return ""
    else:
        name = options.prompt_file
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise UserError(f"--prompt-file = {name}: {error.strerror}; give a file that can be read") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"prompt = {name}: not UTF-8 at byte {error.start}; convert it to UTF-8") from None


def check(options: argparse.Namespace) -> None:
    from gpt.generate import check_sampling

    check_sampling(options.temperature, options.top_k, options.top_p)
    if options.tokens < 0:
        raise UserError(f"--tokens = {options.tokens}: must not be negative; 0 writes the prompt alone")
    if options.num_samples < 1:
        raise UserError(f"--num-samples = {options.num_samples}: must be at least 1; leave it out for one")
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed = {options.seed}: must be at least 0 and below 2**63; leave it out for 0")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)

    import torch

    from gpt.checkpoint import find, load
    from gpt.generate import generate

    check(options)
    model, tokenizer, _ = load(find(options.checkpoint))
    prompt = read_prompt(options) or tokenizer.start
    ids, limit = tokenizer.encode(prompt), model.config.context_length
    if len(ids) > limit:
        print(f"note: the prompt has {len(ids):,} tokens; the model sees the last {limit:,}", file=sys.stderr)

    generator = torch.Generator().manual_seed(options.seed)
    prompts = ids.expand(options.num_samples, -1)  # all samples at once, which costs little more than one
    sys.stdout.write(prompt)
    whole, others = codecs.getincrementaldecoder("utf-8")("replace"), []  # a token may end within a character
    for drawn in generate(model, prompts, options.tokens, options.temperature, options.top_k, options.top_p, generator):
        sys.stdout.write(whole.decode(tokenizer.join(drawn[:1])))
        sys.stdout.flush()
        others.append(drawn[1:])
    print(flush=True)
    for sample in zip(*others, strict=True):
        print("-" * 20 + "\n" + prompt + tokenizer.decode(sample), flush=True)


if __name__ == "__main__":
    with user_errors():
        try:
            main()
        except BrokenPipeError:  # whoever read us, has had enough: sample.py | head
            sys.stderr.close()
        except KeyboardInterrupt:
            sys.exit(130)
