"""Fine-tune a GPT for a task, as conf/finetune.yaml and the key=value of the command line say:

python scripts/finetune.py init=outputs/RUN task=which_word
"""

try:
    from gpt.cli.main import finetune
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None

if __name__ == "__main__":
    finetune()
