"""Looks for memory errors and undefined behaviour in the C++ kernels: ``make sanitize``.

Compiles ``csrc`` once more, with g++'s AddressSanitizer and UndefinedBehaviorSanitizer, beside a copy of the package in
``build/sanitize``; what is installed is not touched. Shows first that deliberate errors are found, also in memory that
torch allocated, then runs the operators' tests on every instruction set that this CPU has, and at last a few calls of
the installed kernels under valgrind, which sees numbers nobody wrote but knows no AVX-512.
"""
# ruff: noqa: S603, S607, T201  # starts g++, pytest and valgrind, and prints

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from distutils.core import run_setup  # setuptools brings it; it reads setup.py, so that no flag is repeated here
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from setuptools import Extension

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "sanitize"
COPY = PLACE / "src"
LIBRARY = "_C.abi3.so"
ISAS = ("avx512_bf16", "avx512", "avx2", "portable")
# The operators' tests but for those that start a compiler: that would inherit the sanitizer.
TESTS = [
    *(f"tests/ops/test_deform_conv2d{part}.py" for part in ("", "_contract", "_layout", "_dtypes")),
    *(f"tests/ops/test_deform_roi_pool{part}.py" for part in ("", "_contract")),
    "tests/ops/test_dispatch.py",
    "tests/ops/test_fuzz.py",
]
# -O1: what -O3 merges or drops is still checked, and the lines in a report are right. A first finding ends the process.
FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]

PROBE = """
typedef int Wide __attribute__((vector_size(32), aligned(4), may_alias));
extern "C" {
int inside(const int* p, long n) { return p[n - 1]; }
int past(const int* p, long n) { return p[n]; }
int partly_past(const int* p, long n) { return (*reinterpret_cast<const Wide*>(p + n - 7))[7]; }
long overflow(const int*, long n) { return 0x7fffffffffffffff + n; }
int misaligned(const int* p, long) { return *reinterpret_cast<const int*>(reinterpret_cast<const char*>(p) + 1); }
volatile int branched;  // so that a branch it remains: valgrind reports no other use of what was never written
int unwritten(const int* p, long n) {
  if (p[n - 1] > 7) branched = 1;
  return 2;
}
}
"""
FOUND_AS = {
    "past": "heap-buffer-overflow",
    "partly_past": "heap-buffer-overflow",
    "overflow": "signed integer overflow",
    "misaligned": "misaligned address",
}
CALL_PROBE = """
import ctypes, sys, torch
values = torch.full((100,), 5, dtype=torch.int32)
getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])(ctypes.c_void_p(values.data_ptr()), ctypes.c_long(len(values)))
"""
# Odd sizes, so that every loop has a rest; both layouts, groups, a mask, and forward and backward.
VALGRIND_SET = """
import ctypes, sys, torch
probe = ctypes.CDLL(sys.argv[1])
values = torch.empty(100, dtype=torch.int32)
for name in ("past", "unwritten"):
    getattr(probe, name)(ctypes.c_void_p(values.data_ptr()), ctypes.c_long(len(values)))

from torchdcn.ops import backend, deform_conv2d, deform_roi_pool, instruction_set
assert instruction_set() == sys.argv[2], instruction_set()
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for layout in (torch.contiguous_format, torch.channels_last):
        input = torch.randn(2, 6, 7, 5).to(dtype=dtype, memory_format=layout).requires_grad_()
        weight = torch.randn(10, 3, 3, 3).to(dtype).requires_grad_()
        offset = torch.randn(2, 36, 4, 3).mul(2).to(dtype).requires_grad_()
        mask = torch.rand(2, 18, 4, 3).to(dtype).requires_grad_()
        with backend("cpp"):
            deform_conv2d(input, offset, weight, stride=2, padding=1, mask=mask).square().sum().backward()
        assert all(t.grad.isfinite().all() for t in (input, offset, weight, mask))
        shift = torch.randn(3, 2, 3, 2).to(dtype).requires_grad_()
        factor = torch.rand(3, 1, 3, 2).to(dtype).requires_grad_()
        boxes = torch.tensor([[0, 0.3, 0.4, 4.1, 5.2], [1, -3, 1, 2, 9], [0, 4, 2, 4.5, 2.1]]).to(dtype)
        with backend("cpp"):
            deform_roi_pool(input, boxes, (3, 2), shift, factor, gamma=0.3).square().sum().backward()
        assert all(t.grad.isfinite().all() for t in (input, shift, factor))
print("calls: done")
"""


def stop(line: str) -> None:
    """Ends the check with one line."""
    sys.exit(f"sanitize: {line}")


def run(
    *command: str | Path, environment: dict[str, str] | None = None, stderr: IO[str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command in the project's folder and shows it."""
    print("$", *(c if "\n" not in str(c) else "..." for c in command), flush=True)
    return subprocess.run(command, cwd=ROOT, env=os.environ | (environment or {}), stderr=stderr, check=False)


def compile_all() -> None:
    """Compiles what is older than its source, any header, ``setup.py`` or this file, and links it into the copy."""
    (extension,) = run_setup(str(ROOT / "setup.py"), stop_after="init").ext_modules
    objects = PLACE / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    common = [*(ROOT / "csrc").glob("*.h"), ROOT / "setup.py", Path(__file__)]

    def compile_one(source: Path) -> Path:
        target = objects / f"{source.stem}.o"
        newest = max(p.stat().st_mtime for p in (source, *common))
        if not (target.exists() and target.stat().st_mtime > newest):
            partial = target.with_suffix(".part")
            if run("g++", "-c", source, "-o", partial, "-fPIC", *compile_flags(extension)).returncode:
                raise RuntimeError(source.name)
            partial.replace(target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            compiled = list(pool.map(compile_one, (ROOT / s for s in extension.sources)))
        except RuntimeError as error:
            stop(f"{error} does not compile")
    places = [f"-L{path}" for path in extension.library_dirs]
    libraries = [f"-l{name}" for name in extension.libraries]
    target = COPY / "torchdcn" / LIBRARY
    if run("g++", "-shared", *compiled, "-o", target, *FLAGS, *places, *libraries).returncode:
        stop("the kernels don't link")


def compile_flags(extension: Extension) -> list[str]:
    """Those of ``setup.py``, then ours, which win."""
    macros = [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in extension.define_macros]
    includes = [f"-I{path}" for path in (*extension.include_dirs, sysconfig.get_paths()["include"])]
    return [*macros, *includes, *extension.extra_compile_args, *FLAGS]


def copy_package() -> None:
    """The package as it is now, without its kernels."""
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(
        ROOT / "src" / "torchdcn", COPY / "torchdcn", ignore=shutil.ignore_patterns("_C*.so", "__pycache__")
    )


def compile_probe(name: str, *flags: str) -> Path:
    """A library of deliberate errors."""
    source, target = PLACE / "probe.cpp", PLACE / name
    source.write_text(PROBE)
    if run("g++", "-shared", "-fPIC", "-g", source, "-o", target, *flags).returncode:
        stop(f"{source} does not compile")
    return target


def sanitizer_environment() -> dict[str, str]:
    """What lets sanitized kernels run within a Python that is not.

    The sanitizers must be there before anything else is, and libstdc++ with them, since AddressSanitizer looks for the
    function that throws when it starts and Python brings none. Leaks are not looked for, for Python and torch free
    little at their end; an allocation that fails shall raise, as always.
    AddressSanitizer stands between torch and ``dlopen``, which then no longer sees torch's own search path: cuDNN,
    whose version torch asks for on a CPU too, must be found by ``LD_LIBRARY_PATH``.
    """
    names = ("libasan.so", "libubsan.so", "libstdc++.so.6")
    found = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    if missing := [name for name, path in zip(names, found, strict=True) if not Path(path).is_absolute()]:
        stop(f"g++ has no {', '.join(missing)}; install the sanitizers of your g++ (Fedora: libasan, libubsan)")
    packages = Path(torch.__file__).parent.parent
    libraries = [packages / "torch" / "lib", *sorted(packages.glob("nvidia/*/lib"))]
    return {
        "LD_PRELOAD": " ".join(found),
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": str(COPY),
    }


def run_sanitized(*command: str | Path, environment: dict[str, str]) -> tuple[int, str]:
    """Runs a command; returns its exit code and what the sanitizers reported, which is the end of its stderr."""
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        code = run(*command, environment=environment, stderr=stderr).returncode
        stderr.seek(0)
        text = stderr.read()
    begin = re.search(r"^.*(runtime error:|ERROR: AddressSanitizer)", text, re.MULTILINE)
    if code and not begin:
        print(text[-4000:], file=sys.stderr)
    return code, text[begin.start() :] if begin else ""


def check_sanitizers_bite(environment: dict[str, str]) -> None:
    """Each deliberate error is reported and ends the process; a call without one is not and does not."""
    probe = compile_probe("probe.so", *FLAGS)
    for name, words in {"inside": "", **FOUND_AS}.items():
        code, report = run_sanitized(sys.executable, "-c", CALL_PROBE, probe, name, environment=environment)
        if words and (code == 0 or words not in report):
            stop(f"the deliberate error {name!r} was not found: exit code {code}, report: {report or 'none'}")
        if not words and (code or report):
            stop(f"a call without an error ended with exit code {code}, report: {report or 'none'}")
    print(f"sanitize: all {len(FOUND_AS)} deliberate errors were found")


def check_tests(isa: str, tests: list[str], environment: dict[str, str]) -> None:
    """The tests pass on the sanitized kernels, without any report."""
    where = "import torchdcn; print(torchdcn.__file__); print(torchdcn.ops.instruction_set())"
    environment = environment | {"TORCHDCN_ISA": isa}
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        stop(f"the sanitized kernels don't load: {found.stderr}")
    file, actual = found.stdout.split()
    if not Path(file).is_relative_to(COPY):
        stop(f"expected to test the copy in {COPY}, got {file}")
    if actual != isa:
        print(f"sanitize: {isa} skipped: this CPU has {actual} at most")
        return
    # --capture=sys: pytest would keep the report of the test during which the process ends.
    options = ["-p", "no:cacheprovider", "--capture=sys", *tests]
    code, report = run_sanitized(sys.executable, "-m", "pytest", *options, environment=environment)
    if report:
        stop(f"{isa}: an error was found\n{report[:6000]}")
    if code:
        stop(f"{isa}: the tests failed with exit code {code}")


def check_valgrind(isa: str) -> None:
    """Counts valgrind's findings within our library: Python and torch have some of their own."""
    if not shutil.which("valgrind"):
        print("sanitize: valgrind skipped: it is not installed (Debian: apt-get install valgrind)")
        return
    probe = compile_probe("plain.so", "-O1")
    output = PLACE / "valgrind.xml"
    options = [
        "--quiet",
        "--xml=yes",
        f"--xml-file={output}",
        "--leak-check=no",
        "--error-limit=no",
        "--num-callers=40",
    ]
    # Python's own allocator would hide the ends of its blocks; valgrind runs one thread at a time anyway.
    settings = {"PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1", "TORCHDCN_ISA": isa, "PYTHONPATH": str(ROOT / "src")}
    code = run("valgrind", *options, sys.executable, "-c", VALGRIND_SET, probe, isa, environment=settings).returncode
    if code:
        stop(f"the calls under valgrind failed with exit code {code}")
    found = ET.parse(output).getroot().findall("error")  # noqa: S314  # valgrind wrote it just now
    # What a thread keeps for its next call is not lost; valgrind lists it although no check for leaks was asked for.
    errors = [error for error in found if not (error.findtext("kind") or "").startswith("Leak_")]
    seen = {error.findtext("kind") for error in errors if touches(error, probe.name)}
    if not {"InvalidRead", "UninitCondition"} <= seen:
        stop(f"valgrind did not find both deliberate errors, but {sorted(map(str, seen))}")
    ours = [describe(error) for error in errors if touches(error, LIBRARY)]
    if ours:
        stop(f"valgrind found {len(ours)} errors in {LIBRARY}\n" + "\n\n".join(ours[:5]))
    print(f"sanitize: valgrind found both deliberate errors and none in the {isa} kernels ({len(errors)} elsewhere)")


def touches(error: ET.Element, library: str) -> bool:
    """Whether a finding happened below a library's function; where memory came from doesn't count."""
    stack = error.find("stack")
    return stack is not None and any((obj.text or "").endswith(f"/{library}") for obj in stack.iter("obj"))


def describe(error: ET.Element) -> str:
    """A finding in a few lines."""
    what = error.findtext("what") or error.findtext("xwhat/text") or ""
    frames = [re.sub(r"\(.*", "", f.findtext("fn") or f.findtext("ip") or "?") for f in error.iterfind("stack/frame")]
    return "\n".join([f"{error.findtext('kind')}: {what}", *(f"  {frame}" for frame in frames[:12])])


def main() -> None:
    """Compiles, proves, tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--isa", nargs="+", choices=ISAS, default=ISAS, help="instruction sets to test (default: all)")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="test files (default: the operators')")
    parser.add_argument("--skip-valgrind", action="store_true", help="only the sanitizers")
    arguments = parser.parse_args()
    if not shutil.which("g++"):
        stop("g++ was not found; the sanitizers used here are those of g++ (Debian: apt-get install g++)")
    os.chdir(ROOT)  # setup.py names its sources from here
    copy_package()
    compile_all()
    environment = sanitizer_environment()
    check_sanitizers_bite(environment)
    for isa in arguments.isa:
        check_tests(isa, arguments.tests, environment)
    if not arguments.skip_valgrind:
        check_valgrind("avx2")
    print("sanitize: no error found")


if __name__ == "__main__":
    main()
