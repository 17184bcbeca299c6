"""Files of one's own: which of them a path means, and the text in them, by their kind and their encoding."""

import contextlib
import csv
import glob
import io
import json
import mimetypes
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from gpt.config import DataConfig
from gpt.errors import UserError, shorten

PART = 2**22  # characters or bytes read at once
ROWS = 2**12  # of a table, likewise
SAMPLE = 2**16  # bytes by which an encoding is told
TABLES = (".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")  # of the first three nobody learns the syntax
LIKELY = ["utf_16", "utf_16_le", "utf_16_be", "utf_32", "cp1252", "cp1250", "cp1251", "koi8_r"]
LIKELY += ["cp1253", "cp1254", "cp1255", "cp1256", "gb18030", "big5", "cp932", "euc_jp", "cp949"]


def find_files(places: str | list[str], setting: str = "data.path") -> list[Path]:
    """The files that each place means, in natural order: one, all in a folder and below, or a pattern's.

    In a pattern `**` stands for any number of folders, none of them a link. Hidden files are left out, and a
    file that several links or places lead to is listed once. Raises UserError if a place has no file.
    """
    found: dict[Path, Path] = {}
    for path in [places] if isinstance(places, str) else places:
        if not (files := files_at(Path(path).expanduser())):
            why = "a folder without files that can be read" if os.path.isdir(path) else "no such file"
            raise UserError(f"{setting} = {path}: {why}; give a text file, a folder or a pattern")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def files_at(place: Path) -> list[Path]:
    """The files of one place, if there are any."""
    with contextlib.suppress(OSError, ValueError):  # a name that is too long; ** next to other characters
        if place.is_file():
            return [place]
        folder = place
        while glob.has_magic(str(folder)) and not folder.is_dir():
            folder = folder.parent
        pattern = "**" if place == folder else str(place.relative_to(folder))
        found = folder.glob(f"{pattern}/*" if pattern.endswith("**") else pattern)
        shown = (path for path in found if "/." not in f"/{path.relative_to(folder).as_posix()}")
        # part2.txt comes before part10.txt
        padded = partial(re.sub, r"\d+", lambda number: number[0].zfill(20))
        return sorted(filter(Path.is_file, shown), key=lambda path: [*map(padded, path.parts)])
    return []


@dataclass(frozen=True)
class Documents:
    """The text of files in parts of at most PART characters, or of bytes if `raw`, as `config` says.

    Line endings stay, and a byte order mark that begins a file does not. `data.separator` ends each row of a
    table, and each file but the last that does not end with it. Raises UserError for a file that cannot be
    read, is not UTF-8, or is a table without the column that is wanted.
    """

    files: list[Path]
    config: DataConfig
    raw: bool = False
    setting: str = "data.path"  # what named the files

    def __iter__(self) -> Iterator[Any]:
        separator: Any = self.config.separator.encode() if self.raw else self.config.separator
        is_ended = True
        for file in self.files:
            for number, part in enumerate(self.parts_of(file)):
                if number == 0 and not is_ended:
                    yield separator
                yield part
                is_ended = part.endswith(separator)

    def parts_of(self, path: Path) -> Iterator[Any]:
        """The parts of one file."""
        kind = path.suffix.lower()
        is_table = self.config.column is not None or (kind in TABLES[:3] and not self.raw)
        try:
            with open(path, "rb") as file:
                text = io.TextIOWrapper(file, "utf-8-sig", newline="")
                try:
                    cells = self.cells(path, rows(file, text, kind)) if is_table else iter(())
                    while part := "".join(islice(cells, ROWS)):
                        yield part.encode() if self.raw else part
                    while not is_table and (piece := (file if self.raw else text).read(PART)):
                        yield piece
                except UnicodeDecodeError as error:
                    error.start += file.tell() - len(error.object)  # it counts from the object's first byte
                    error.object += file.read(SAMPLE)  # by which the encoding is told
                    raise
        except UserError:
            raise
        except (AttributeError, ImportError, OSError, TypeError, ValueError, csv.Error) as error:
            raise UserError(f"{self.setting} = {path}: {self.explain(path, error)}") from None

    def cells(self, path: Path, found: Iterator[Any]) -> Iterator[str]:
        """What rows have in the column, each with the separator after it. Empty ones are left out."""
        column, separator = self.config.column, self.config.separator
        for number, row in enumerate(found):
            if number == 0 and column not in row:
                columns = shorten(", ".join(map(str, row)), 200)
                reason = f"{path} has no such column; choose one of {columns}"
                raise UserError(f"data.column = {column or 'null'}: {reason}")
            if (cell := row.get(column)) not in (None, ""):
                known = str(cell).encode(errors="replace").decode()  # JSON may have half a surrogate pair
                yield known.removesuffix(separator) + separator

    def explain(self, path: Path, error: Exception) -> str:
        """Why a file cannot be read, and what to do about it."""
        if isinstance(error, OSError):
            return f"{error.strerror}; give a file that can be read"
        if isinstance(error, ImportError):
            return "Parquet is read by pyarrow, which is not installed; pip install pyarrow"
        if not isinstance(error, UnicodeDecodeError):
            found = shorten(getattr(error, "doc", error))  # the line, if it should be JSON
            return f"not the rows of a {path.suffix} file ({found}); correct it, or leave the file out"
        place = f"not UTF-8 at byte {error.start}"
        name, new = shlex.quote(str(path)), f"{path.stem}.utf8{path.suffix}"
        if error.reason == "unexpected end of data" and error.object[-2:-1] > b"\x7f":  # no lone letter
            command = f"head -c {error.start} {name} > {shlex.quote(new)}"
            return f"{place}, where its last character is cut off; use {new} of: {command}"
        if (encoding := encoding_of(error.object)) is not None:
            command = f"iconv -f {encoding} -t utf-8 {name} > {shlex.quote(new)}"
            return f"{place}, but probably {encoding}; use {new} of: {command}"
        texts = [file for file in self.files if str(mimetypes.guess_type(file)[0]).startswith("text/")]
        pattern = shlex.quote(f"{texts[0].parent}/*{texts[0].suffix}" if texts else "my.txt")
        return f"not a text; set {self.setting}={pattern}, or data.tokenizer=byte for any file"


def rows(file: IO[bytes], text: IO[str], kind: str) -> Iterator[Any]:
    """The rows of a table as dictionaries. Raises ValueError if it is of no known kind."""
    if kind == ".parquet":
        from pyarrow.parquet import ParquetFile  # which nothing else here needs

        yield from (row for batch in ParquetFile(file).iter_batches(ROWS) for row in batch.to_pylist())
    elif kind in (".csv", ".tsv"):
        csv.field_size_limit(2**31 - 1)  # a text may be longer than the default
        yield from csv.DictReader(text, delimiter="," if kind == ".csv" else "\t")
    elif kind in TABLES:
        yield from map(json.loads, filter(str.strip, text))
    else:
        raise ValueError(f"data.column is for {', '.join(TABLES)}")


def encoding_of(sample: bytes) -> str | None:
    """The likeliest encoding of a text, as iconv calls it. None: it is no text."""
    from charset_normalizer import from_bytes  # here, because it is for mistakes alone

    sample = sample if b"\0" in sample else sample.lstrip(bytes(range(128)))  # of which ASCII tells nothing
    ends = [len(sample) - cut for cut in range(4)]  # it may end within a character
    matches = [match for end in ends for match in from_bytes(sample[:end], cp_isolation=LIKELY)]
    likely = [match for match in matches if match.encoding in LIKELY]
    best = min(likely, key=lambda one: (one.chaos, -one.coherence, LIKELY.index(one.encoding)), default=None)
    name = min(best.could_be_from_charset, key=LIKELY.index) if best else None
    return name and re.sub("_?([lb]e)$", r"\1", name).replace("_", "-")  # utf-16le
