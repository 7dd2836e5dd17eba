"""What one binary for many versions of torch and Python may rest on: the stable ABI, and nothing else."""

import platform
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import torchdcn

SYSTEM = r"lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|c\+\+|c\+\+abi|unwind)\.so\.\d+|ld-.*\.so\.\d+"
TORCH = r"lib(c10|torch_cpu|torch)\.so"


@dataclass(frozen=True)
class Section:
    kind: int
    offset: int
    size: int
    link: int  # the section with its strings
    entry: int


@dataclass(frozen=True)
class Elf:
    """The dynamic part of a 64-bit little-endian ELF file: what it asks of others when it is loaded."""

    data: bytes

    def sections(self) -> list[Section]:
        (start,) = struct.unpack_from("<Q", self.data, 40)
        size, count = struct.unpack_from("<HH", self.data, 58)
        headers = (struct.unpack_from("<IIQQQQIIQQ", self.data, start + i * size) for i in range(count))
        return [
            Section(kind, offset, length, link, entry) for _, kind, _, _, offset, length, link, _, _, entry in headers
        ]

    def entries(self, kind: int, form: str) -> Iterator[tuple[Section, tuple[int, ...]]]:
        """The entries of the section of a kind, with the section that holds their strings."""
        sections = self.sections()
        for section in sections:
            if section.kind == kind:
                for at in range(section.offset, section.offset + section.size, section.entry):
                    yield sections[section.link], struct.unpack_from(form, self.data, at)

    def string(self, strings: Section, index: int) -> str:
        start = strings.offset + index
        return self.data[start : self.data.index(b"\0", start)].decode()

    def needed(self) -> set[str]:
        """The libraries it is linked to (DT_NEEDED entries of the dynamic section)."""
        return {self.string(strings, value) for strings, (tag, value) in self.entries(6, "<QQ") if tag == 1}

    def symbols(self, *, defined: bool) -> set[str]:
        """The names it exports, or those it takes from elsewhere (index 0: defined in no section of its own)."""
        found = self.entries(11, "<IBBHQQ")
        return {self.string(strings, name) for strings, (name, _, _, at, *_) in found if name and bool(at) == defined}


@pytest.fixture(scope="module")
def path() -> Path:
    (found,) = Path(torchdcn.__file__).parent.glob("_C*")  # one, and no leftover of another build beside it
    return found


@pytest.fixture(scope="module")
def elf(path: Path) -> Elf:
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        pytest.skip(f"{platform.system()} on {platform.machine()} has no 64-bit little-endian ELF files")
    return Elf(data)


def test_its_name_promises_the_limited_api(path: Path) -> None:
    assert path.name in ("_C.abi3.so", "_C.pyd")


def test_it_links_torchs_core_and_the_cpp_runtime_only(elf: Elf) -> None:
    needed = elf.needed()
    assert {"libtorch_cpu.so"} <= needed
    assert {name for name in needed if not re.fullmatch(f"{TORCH}|{SYSTEM}", name)} == set()


def from_python(elf: Elf) -> set[str]:
    return {name for name in elf.symbols(defined=False) if re.match("_?Py", name)}


def cpp_of_torch(elf: Elf) -> set[str]:
    """Names in torch's C++ namespaces, which hold for one version; the stable ABI is made of C functions."""
    return {name for name in elf.symbols(defined=False) if re.match(r"_Z(T[A-Z])?NK?(2at|3c10|5torch)\d", name)}


def test_it_takes_nothing_from_python_and_from_torch_its_c_functions_only(elf: Elf) -> None:
    assert from_python(elf) == set()
    assert cpp_of_torch(elf) == set()
    assert any(name.startswith("aoti_torch_") for name in elf.symbols(defined=False))


@pytest.mark.usefixtures("elf")
def test_torchs_own_binding_would_not_pass() -> None:
    """Lest the checks above find nothing because they read nothing."""
    binding = Elf((Path(torch.__file__).parent / "lib" / "libtorch_python.so").read_bytes())
    assert "PyObject_Call" in from_python(binding)
    assert len(cpp_of_torch(binding)) > 100
    assert not all(re.fullmatch(f"{TORCH}|{SYSTEM}", name) for name in binding.needed())
