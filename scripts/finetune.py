"""Fine-tune a GPT for a task, as conf/finetune.yaml and the key=value of the command line say:

python scripts/finetune.py init=outputs/RUN task=next_speech
"""

from gpt.cli.program import run_program

HELP = """Fine-tune a pre-trained GPT for a task: python scripts/finetune.py [key=value ...]

  python scripts/finetune.py init=outputs/RUN task=next_speech     what follows a speech: one of four others
  python scripts/finetune.py task=next_speech                      the same model from scratch, for comparison
  python scripts/finetune.py -m init=outputs/RUN,null task=mark,reply seed=1,2,3    a table of all of these
  python scripts/finetune.py init=outputs/RUN task=csv task.path=reviews.csv 'task.columns=[text]' task.label=label

init is a run folder, a .ckpt file such as gpt/pretrained/shakespeare.ckpt, last, or a Hugging Face folder.
All that scripts/train.py can do works here too: resume=last, -m, --cfg job, trainer=gpu, logger=csv."""


def cli() -> None:
    """Fine-tune a single run, or hand over to Hydra for sweeps and for its own options."""
    run_program("finetune", HELP)


if __name__ == "__main__":
    cli()
