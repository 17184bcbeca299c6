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
from itertools import islice
from pathlib import Path
from typing import IO, Any

from gpt.config import DataConfig
from gpt.errors import UserError, shorten

PART = 2**22  # characters or bytes read at once
ROWS = 2**12  # of a table, likewise
TABLES = (".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")  # of the first three nobody learns the syntax
LIKELY = ["utf_8", "utf_16", "utf_16_le", "utf_16_be", "utf_32", "cp1252", "cp1250", "cp1251", "koi8_r"]
LIKELY += ["cp1253", "cp1254", "cp1255", "cp1256", "gb18030", "big5", "cp932", "euc_jp", "cp949"]


def find_files(places: str | list[str], setting: str = "data.path") -> list[Path]:
    """The files that each place means, in natural order: one, all in a folder and below, or a pattern's.

    In a pattern `**` stands for any number of folders, none of them a link. Hidden files are left out, and a
    file that several links or places lead to is listed once. Raises UserError if a place has no file.
    """
    found: dict[Path, Path] = {}
    for path in [places] if isinstance(places, str) else places:
        if not (files := files_at(Path(path))):
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
        return sorted(filter(Path.is_file, shown), key=natural_order)
    return []


def natural_order(path: Path) -> list[list[str | int]]:
    """A key by which part2.txt comes before part10.txt."""
    names = (re.split(r"(\d+)", name) for name in path.parts)
    return [[int(piece) if piece.isdecimal() else piece for piece in name] for name in names]


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
        try:
            with open(path, "rb") as file:
                text = io.TextIOWrapper(file, "utf-8-sig", newline="")
                try:
                    if self.config.column is not None or (path.suffix in TABLES[:3] and not self.raw):
                        cells = self.cells(path, rows(file, text, path.suffix, self.config.column))
                        while part := "".join(islice(cells, ROWS)):
                            yield part.encode() if self.raw else part
                    while piece := (file if self.raw else text).read(PART):
                        yield piece
                except UnicodeDecodeError as error:  # which counts from the first byte of `error.object`
                    wrong = file.tell() - len(error.object) + error.start
                    raise UserError(f"{self.setting} = {path}: {self.explain(path, error, wrong)}") from None
        except OSError as error:
            reason = f"{error.strerror}; give a file that can be read"
            raise UserError(f"{self.setting} = {path}: {reason}") from None

    def cells(self, path: Path, found: Iterator[Any]) -> Iterator[str]:
        """What rows have in the column, each with the separator after it."""
        number, column, separator = 0, self.config.column, self.config.separator
        try:
            for number, row in enumerate(found, start=1):
                if column not in row and number == 1:
                    has = f"{path} has no such column; choose one of {shorten(', '.join(map(str, row)), 200)}"
                    raise UserError(f"data.column = {column or 'null'}: {has}")
                if cell := row.get(column):
                    known = str(cell).encode(errors="replace").decode()  # JSON may have half a surrogate pair
                    yield known.removesuffix(separator) + separator
        except (UserError, UnicodeDecodeError):
            raise
        except ImportError:
            raise UserError(f"{self.setting} = {path}: Parquet needs pyarrow; pip install pyarrow") from None
        except (AttributeError, TypeError, ValueError, csv.Error) as error:
            reason = f"row {number + 1} is none of a {path.suffix} file ({shorten(error)})"
            raise UserError(f"{self.setting} = {path}: {reason}; correct it, or leave the file out") from None

    def explain(self, path: Path, error: UnicodeDecodeError, wrong: int) -> str:
        """Why a file is not UTF-8 from byte number `wrong` on, and what to do about it."""
        encoding, name, new = encoding_of(error.object), shlex.quote(str(path)), f"new{path.suffix}"
        if encoding is not None:
            convert = f"iconv -f {encoding} -t utf-8 {name} > {new}"
            if encoding in ("ascii", "utf-8"):  # the last character is cut off
                convert = f"head -c {wrong} {name} > {new}"
            return f"not UTF-8 at byte {wrong}; convert it, {convert}, and use {new} in its place"
        texts = [file for file in self.files if str(mimetypes.guess_type(file)[0]).startswith("text/")]
        pattern = shlex.quote(f"{texts[0].parent}/*{texts[0].suffix}" if texts else "my.txt")
        return f"not a text; set {self.setting}={pattern}, or data.tokenizer=byte for any file"


def rows(file: IO[bytes], text: IO[str], kind: str, column: str | None) -> Iterator[Any]:
    """The rows of a table as dictionaries. Raises ValueError if it is of no known kind."""
    if kind == ".parquet":
        from pyarrow.parquet import ParquetFile  # which nothing else here needs

        table = ParquetFile(file)
        columns = [column] if column in table.schema_arrow.names else None
        yield from (row for batch in table.iter_batches(columns=columns) for row in batch.to_pylist())
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

    for cut in range(4):  # the sample may end within a character
        if best := from_bytes(sample[: len(sample) - cut], cp_isolation=LIKELY).best():
            name = "cp1252" if "cp1252" in best.could_be_from_charset else best.encoding
            return name.replace("_", "-")
    return None
