"""Fine-tune a GPT for a task, as conf/finetune.yaml and the key=value of the command line say:

python scripts/finetune.py init=outputs/RUN task=which_word
"""

from gpt.cli.main import finetune

if __name__ == "__main__":
    finetune()
