"""Writes docs/api.md from the docstrings: `python docs/api_page.py`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

PAGE = Path(__file__).with_name("api.md")

# A room, its sentence, and its names; None stands for all that it lists in __all__.
ROOMS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "torchdcn": (
        "A picture in, what was found out ([detect.md](detect.md)).",
        ("Detector", "Detections"),
    ),
    "torchdcn.ops": ("Functions of tensors ([operator.md](operator.md), [roi_pooling.md](roi_pooling.md)).", None),
    "torchdcn.nn": ("Layers over them ([surgery.md](surgery.md), [roi_pooling.md](roi_pooling.md)).", None),
    "torchdcn.models": ("Detectors by name ([models.md](models.md)).", None),
    "torchdcn.models.rcnn": ("What `create_model` returns.", ("RCNN",)),
    "torchdcn.models.settings": ("What `create_model` takes as overrides, and `torchdcn train --set`.", ("Settings",)),
    "torchdcn.models.weights": (
        "Files ([weights.md](weights.md)).",
        ("save_weights", "read_info", "WeightsInfo"),
    ),
    "torchdcn.interop": ("To and from others ([weights.md](weights.md), [export.md](export.md)).", None),
    "torchdcn.data": ("Data sets ([data.md](data.md)).", None),
    "torchdcn.training": ("One loop ([training.md](training.md)).", None),
    "torchdcn.evaluation": ("COCO's figures.", None),
    "torchdcn.analysis": ("Where a network looks ([seeing.md](seeing.md)).", None),
    "torchdcn.plotting": ("Pictures, from plain arrays.", None),
}
CONSTANTS = {
    "PASSES": "How many forward passes a search for a saliency region takes, at most.",
    "PALETTE": "The colours of objects and lines, RGB.",
}
HEAD = """# Reference

All public names, from their docstrings: `python docs/api_page.py` writes this page. Shapes stand in brackets; N is the
batch, C channels, H and W height and width, K taps or boxes, G deformable groups, D detections. Errors name the
argument at fault. Examples are Python sessions.

"""
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Examples")
LISTS = {"Args": "Arguments", "Attributes": "Attributes", "Raises": "Raises"}
WIDTH = 100


def page() -> str:
    rooms = {room: (words, names or listed(room)) for room, (words, names) in ROOMS.items()}
    text = HEAD
    for room, (_, names) in rooms.items():
        links = ", ".join(f"[{name}](#{name.lower()})" for name in names)
        text += f"- `{room}`: {links}\n"
    for room, (words, names) in rooms.items():
        text += f"\n## {room}\n\n{words}\n"
        for name in names:
            text += entry(name, getattr(import_module(room), name))
    return text


def listed(room: str) -> tuple[str, ...]:
    return tuple(import_module(room).__all__)


def entry(name: str, found: Any) -> str:
    text = f"\n### {name}\n\n"
    if not callable(found):
        return text + f"{CONSTANTS[name]}\n\n```python\n{name} = {found!r}\n```\n"
    text += f"```python\n{signature(name, found)}\n```\n\n" + markdown(found.__doc__ or "", found)
    if not inspect.isclass(found):
        return text
    fields = [f for f in (dataclasses.fields(found) if dataclasses.is_dataclass(found) else ()) if "help" in f.metadata]
    if fields:
        text += "\n**Fields**\n\n" + "".join(f"- `{field.name}`: {field.metadata['help']}\n" for field in fields)
    return text + methods(found)


def signature(name: str, found: Any) -> str:
    if inspect.isclass(found) and issubclass(found, Exception):
        return f"class {name}({found.__base__.__name__})"
    given = inspect.signature(found)
    if len(given.parameters) > 20:
        return f"{name}(...)"  # its fields are listed below
    parts = parameters(given)
    end = ")" if inspect.isclass(found) or given.return_annotation is given.empty else f") -> {given.return_annotation}"
    line = f"{name}({', '.join(parts)}{end}"
    return line if len(line) <= WIDTH else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + end


def parameters(given: inspect.Signature) -> list[str]:
    """Each as it is written in the code, and the star before those that go by name alone."""
    parts: list[str] = []
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
    for parameter in given.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        annotation = parameter.annotation if isinstance(parameter.annotation, str) else ""
        part = stars.get(parameter.kind.name, "") + parameter.name + (f": {annotation}" if annotation else "")
        if parameter.default is not parameter.empty:
            default = "..." if "factory" in repr(parameter.default) else repr(parameter.default).replace("'", '"')
            part += f" = {default}" if annotation else f"={default}"
        parts.append(part)
    return parts


def markdown(docstring: str, owner: Any = None) -> str:
    """A docstring in Google's form as Markdown."""
    blocks = re.split(rf"^({'|'.join(SECTIONS)}):\n", inspect.cleandoc(docstring), flags=re.MULTILINE)
    text = prose(blocks[0])
    for title, body in zip(blocks[1::2], blocks[2::2], strict=True):
        inner, rest = indented(body)
        if title in LISTS:
            text += f"\n**{LISTS[title]}**\n\n{items(inner, owner if title == 'Attributes' else None)}"
        elif title.startswith("Example"):
            text += f"\n```pycon\n{inner.strip()}\n```\n"
        else:
            text += f"\n**{title}** " + prose(inner)
        text += f"\n{prose(rest)}" if rest.strip() else ""
    return text


def indented(body: str) -> tuple[str, str]:
    """The section itself, without its indentation, and what follows it."""
    lines = body.split("\n")
    end = next((i for i, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return dedent("\n".join(lines[:end])).strip(), "\n".join(lines[end:])


def items(body: str, owner: Any) -> str:
    """A list of names and what they are; of a dataclass with their defaults."""
    defaults = {}
    if owner is not None:
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(owner).parameters.items()
            if parameter.default is not parameter.empty and "factory" not in repr(parameter.default)
        }
    text = ""
    for item in re.split(r"\n(?=\S)", body):
        name, _, words = item.partition(": ") if ": " in item else item.partition(":\n")
        default = f" (`{defaults[name]!r}`)" if name in defaults else ""
        text += f"- `{name}`{default}: {' '.join(prose(words).split())}\n"
    return text


def prose(text: str) -> str:
    text = re.sub(r":\w+:`~?([^`]*)`", lambda m: f"`{m[1].removeprefix('torchdcn.')}`", text.strip())
    return text.replace("``", "`") + "\n"


def methods(found: type) -> str:
    """What can be called or read on it beside its fields: each with its docstring's first paragraph."""
    text = ""
    for name in dir(found):
        member = inspect.getattr_static(found, name)
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        public = not name.startswith("_") or name == "__call__"
        if not (public and inspect.isfunction(function) and function.__doc__) or name == "extra_repr":
            continue
        if not function.__module__.startswith("torchdcn"):
            continue
        what = " ".join(prose(inspect.cleandoc(function.__doc__).split("\n\n")[0]).split())
        names = ", ".join(n for n in inspect.signature(function).parameters if n not in ("self", "cls"))
        call = "(...)" if name == "__call__" else f".{name}"
        text += f"- `{call if isinstance(member, property) or name == '__call__' else f'{call}({names})'}`: {what}\n"
    return f"\n**Methods**\n\n{text}" if text else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
