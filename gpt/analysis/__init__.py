"""Tables, pictures and pages about runs. They need the extra `analysis`, so the modules are imported late."""

import os
import shlex
from pathlib import Path

from gpt.errors import one_line, printable

MISSING = '(none), it needs the extra analysis: pip install -e ".[analysis]"'


def report_line(folder: Path) -> str:
    """Write report.html, and say where it is or why there is none: its runs have ended well all the same."""
    try:
        from gpt.analysis.report import write_report

        return f"report: {shlex.quote(printable(os.path.relpath(write_report(folder))))}"
    except ImportError:
        return f"report: {MISSING}"
    except Exception as error:
        return f"report: (none), because of {one_line(error)}"


def table_of(folder: Path) -> str:
    """What `scripts/compare.py` prints, or why there is no table."""
    try:
        from gpt.analysis.report import compare
    except ImportError:
        return f"table: {MISSING}"
    return compare(folder)
