"""The arrows of the house: which room may import which. Lazy imports count too."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "torchdcn"
FLOORS = [
    {"ops"},
    {"nn"},
    {"weights"},
    {"models"},
    {"export"},
    {"interop"},  # which has export's function under the name that users import
    {"detector"},
    {"training", "evaluation", "analysis", "bench"},
    {"reports"},
    {"demo", "web"},  # the page knows nothing of the command that starts it
    {"cli"},
    {"__main__"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
HELPERS = {"data", "synthetic", "detections", "plotting", "images", "files"}  # any room may use these
HELPERS_MAY_USE: dict[str, set[str]] = {
    "data": {"files", "images", "synthetic"},
    "detections": {"plotting", "images"},
    "files": set(),
    "images": set(),
    "plotting": set(),
    "synthetic": set(),
}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms of this package that a file imports, at any depth of its code."""
    package = ("torchdcn", *path.relative_to(SOURCE).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            modules = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            # `from . import x` and `from torchdcn import x` import the room x itself.
            modules = [(*module, alias.name) for alias in node.names] if module == ("torchdcn",) else [module]
        found |= {m[1] if len(m) > 1 else "torchdcn" for m in modules if m[:1] == ("torchdcn",)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down_the_house_only(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return  # the package's front lists its rooms
    for used in imported_rooms(path) - {room}:
        if room in HELPERS:
            assert used in HELPERS_MAY_USE[room], f"{room} must not import {used}"
        elif used in FLOOR:
            assert FLOOR[used] < FLOOR[room], f"{room} must not import {used}, which stands above it or beside it"
        elif used not in HELPERS:
            # Only the top floor may import the package itself (for its version, say).
            assert used in ("torchdcn", "__version__"), f"{room} imports {used}, which has no floor yet"
            assert FLOOR[room] == len(FLOORS) - 1, f"{room} must not import the package itself"


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in FILES} - {"__init__"} <= FLOOR.keys() | HELPERS


def test_files_stay_small() -> None:
    root = SOURCE.parent.parent
    files = [*FILES, *root.glob("csrc/*"), *root.glob("tests/**/*.py"), *root.glob("benchmarks/*.py")]
    assert {str(path): n for path in files if (n := len(path.read_text().splitlines())) > 400} == {}
