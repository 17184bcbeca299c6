"""Train a GPT, as conf/ and the key=value of the command line say:

python scripts/train.py model=small trainer.max_steps=20000
"""

from gpt.cli.main import train

if __name__ == "__main__":
    train()
