"""What Hydra and OmegaConf complain about, in one line."""

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence

from gpt.cli.names import CONF, parse_overrides
from gpt.config import RunConfig, setting_names
from gpt.errors import UserError, did_you_mean, shorten


@contextlib.contextmanager
def hydra_errors(overrides: Sequence[str] | None = None) -> Iterator[None]:
    """Raise a UserError in place of what Hydra says about `overrides`, by default those that were typed."""
    try:
        yield
    except Exception as error:
        if (mistake := explain(error, overrides)) is None:
            raise
        raise mistake from None


def explain(error: Exception, overrides: Sequence[str] | None = None) -> UserError | None:
    """The one line for what Hydra or OmegaConf complains about. None for any other error, which is a bug."""
    text, is_theirs = (
        f"{error}\n{error.__cause__ or ''}",
        type(error).__module__.startswith(("hydra", "omegaconf")),
    )
    words = [word for word in (sys.argv[1:] if overrides is None else overrides) if not word.startswith("-")]
    if found := re.search(r"Could not override '([^'@]+)", text):
        return unknown_setting(found[1], words)
    found = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    group, choice = (found[1], found[2]) if found else ("", "")
    if "Config group override must be" in text:  # such as callbacks=null
        given = {key: value for key, value in parse_overrides(words).items() if (CONF / key).is_dir()}
        group = next(key for key, value in given.items() if not isinstance(value, (str, list)))
        choice = "null" if given[group] is None else str(given[group])
    if group:
        choices = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        return UserError(f"{group} = {choice}: no such file in conf/{group}/; choose one of {choices}")
    if "Ambiguous value" in text:
        several = next((word for word in words if "," in word), words[0])
        return UserError(f"{several} = (several values): that is a sweep; add -m")
    advice = "see python scripts/train.py --help"
    return (
        UserError(f"override = {shorten(' '.join(words))}: {shorten(text, 200)}; {advice}")
        if is_theirs
        else None
    )


def unknown_setting(key: str, words: Sequence[str]) -> UserError:
    """The one line for a setting that does not exist."""
    value = next((word.partition("=")[2] for word in words if word.lstrip("+~").startswith(key)), "")
    if key.partition(".")[0] in ("task", "finetune"):
        return UserError(f"{key} = {shorten(value)}: a setting of fine-tuning; start scripts/finetune.py")
    groups = {str(path.parent.relative_to(CONF)) for path in CONF.glob("*/**/*.yaml")}
    advice = did_you_mean(key, {*setting_names(RunConfig), *groups, "resume"})
    if key.startswith("trainer."):
        advice += f" (an argument of Lightning's Trainer is added by +{key})"
    return UserError(f"{key} = {shorten(value)}: no such setting; {advice}")
