"""The one HTML page that all reports are made from; nothing in it is fetched from elsewhere."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from ..files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path(__file__).parent


def write_page(path: Path, report: str, title: str, values: Mapping[str, object]) -> None:
    """Writes a report.

    Args:
        path: The file.
        report: The report's name: that of its template, and of its class in the style sheet.
        title: Of the browser's window.
        values: What the template's placeholders stand for, as HTML.
    """
    content = _template(report).substitute(values)
    page = _template("page").substitute(title=html.escape(title), report=report, content=content)
    write_atomically(path, lambda file: file.write_text(page, encoding="utf-8"))


def _template(name: str) -> Template:
    return Template((FOLDER / f"{name}.html").read_text(encoding="utf-8"))


def embed_image(content: bytes, kind: str, description: str, attributes: str = "") -> str:
    """An ``<img>`` that holds its picture.

    Args:
        content: The picture file.
        kind: "png" or "jpeg".
        description: What it shows, for those who don't see it.
        attributes: More attributes, as HTML.
    """
    data = base64.b64encode(content).decode()
    return f'<img {attributes} src="data:image/{kind};base64,{data}" alt="{html.escape(description)}">'
