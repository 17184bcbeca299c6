"""Train a GPT, as conf/ and the key=value of the command line say:

python scripts/train.py model=small trainer.max_steps=20000
"""

try:
    from gpt.cli.main import train
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None

if __name__ == "__main__":
    train()
