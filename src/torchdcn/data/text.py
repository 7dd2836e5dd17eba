"""Text files as editors of every system write them."""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, which it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks and the encodings that they stand for; the codecs drop the mark."""


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8, or in what its byte order mark says: UTF-8, UTF-16 or UTF-32.

    Raises:
        OSError: The file can't be read.
        ValueError: It is not text; one line that begins with the path.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.text import read_text
        >>> path = Path(tempfile.mkdtemp()) / "classes.txt"
        >>> _ = path.write_text("bolt", encoding="utf-16")  # as PowerShell writes it
        >>> read_text(path)
        'bolt'
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file: {error}; save it as UTF-8") from None


def read_json(path: Path) -> Any:
    """Reads a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        OSError: The file can't be read.
        ValueError: It is not JSON; one line that begins with the path.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchdcn.data.text import read_json
        >>> path = Path(tempfile.mkdtemp()) / "config.json"
        >>> _ = path.write_text('{"epochs": 3}', encoding="utf-8-sig")
        >>> read_json(path)
        {'epochs': 3}
    """
    try:
        return json.loads(path.read_bytes())  # bytes: json finds the encoding
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None
