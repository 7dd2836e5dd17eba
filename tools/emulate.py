"""Runs the AVX-512 kernels in an emulator, for machines without AVX-512 or AVX512-BF16: ``make emulate``.

Bochs emulates a whole PC with a Sapphire Rapids CPU. The program that ``emulate.cpp`` and the kernels make is the only
process of a Debian kernel that boots from a CD image, and writes to the serial port, which is a file here. Bochs, the
kernel and what they need are packages of Debian 13, 300 MB in ``build/emulate``; nothing is installed. Needs Debian's
apt-get and g++.
"""
# ruff: noqa: S603, S607, T201  # starts apt-get, g++ and Bochs, and prints

import argparse
import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "emulate"
SYSTEM = PLACE / "debian"
LIBRARIES = SYSTEM / "usr/lib/x86_64-linux-gnu"
PACKAGES = ["bochs", "bochs-term", "libgtk-3-0t64", "vgabios", "linux-image-cloud-amd64", "isolinux", "syslinux-common"]
PACKAGES += ["xorriso"]

# The kernels take two functions from torch. Here they have one thread, who does what several would.
STAND_IN = """#pragma once
#include <cstdint>
namespace torch::stable {
inline int64_t threads = 1;
inline int64_t get_num_threads() { return threads; }
template <class Task>
void parallel_for(int64_t begin, int64_t end, int64_t, const Task& task) {
  for (int64_t i = begin; i < end; ++i) task(i, i + 1);
}
}  // namespace torch::stable
"""
BOOT = """SERIAL 0 115200
DEFAULT test
LABEL test
 KERNEL vmlinuz
 INITRD initrd.gz
 APPEND console=ttyS0,115200 quiet mitigations=off no5lvl nokaslr panic=-1
"""
# Without AMX: Debian's kernel and Bochs disagree about its state.
MACHINE = """display_library: rfb, options="timeout=0"
cpu: model=sapphire_rapids, exclude_features="amx,amx_int8,amx_bf16", ips=100000000
memory: guest=512, host=512
romimage: file={share}/bochs/BIOS-bochs-latest
vgaromimage: file={share}/bochs/VGABIOS-lgpl-latest
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={place}/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={place}/serial.txt
log: {place}/bochs.log
panic: action=fatal
"""


def run(*command: str | Path, **environment: str) -> str:
    """Runs a command and returns what it printed; the check ends where one fails."""
    print("$", *map(str, command), flush=True)
    result = subprocess.run(command, env=os.environ | environment, check=False, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        sys.exit(f"emulate: failed with exit code {result.returncode}: {' '.join(map(str, command))}")
    return result.stdout


def unpack() -> None:
    """Debian 13's packages, from the mirror that this machine's apt-get uses, with folders of their own."""
    apt = PLACE / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    targets = ("Created-By: Packages", "Origin: Debian", "Label: Debian")
    mirror = run("apt-get", "indextargets", "--format", "$(REPO_URI)", *targets).split()[0]
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "etc/sources.list").write_text(f"deb [arch=amd64 signed-by={keys}] {mirror} trixie main\n")
    (apt / "state/status").touch()
    folders = {"Etc": "etc", "State": "state", "State::status": "state/status", "Cache": "cache"}
    settings = [f'Dir::{name} "{apt / folder}";\n' for name, folder in folders.items()]
    (apt / "apt.conf").write_text("".join(settings))
    run("apt-get", "update", APT_CONFIG=str(apt / "apt.conf"))
    options = ("--yes", "--download-only", "--no-install-recommends", "--option=Debug::NoLocking=1")
    run("apt-get", "install", *options, *PACKAGES, APT_CONFIG=str(apt / "apt.conf"))
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, SYSTEM], check=True)


def start(program: str, *arguments: str | Path) -> list[str | Path]:
    """The command for one of those packages' programs, with the libraries of its own system."""
    return [
        SYSTEM / "lib64/ld-linux-x86-64.so.2",
        "--library-path",
        LIBRARIES,
        SYSTEM / "usr/bin" / program,
        *arguments,
    ]


def compile_test() -> Path:
    """The kernels and their test as one program without torch's library."""
    stable = PLACE / "torch/csrc/stable"
    stable.mkdir(parents=True, exist_ok=True)
    for name, text in {"library.h": STAND_IN, "ops.h": "", "tensor.h": ""}.items():
        (stable / name).write_text(text)
    sources = [ROOT / "tools/emulate.cpp", *(ROOT / "csrc" / f"{name}.cpp" for name in ("avx512", "avx512_bf16"))]
    headers = Path(torch.__file__).parent / "include"
    includes = ["-I", PLACE, "-I", ROOT / "csrc", "-isystem", headers, "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    program = PLACE / "init"
    run("g++", "-O3", "-std=c++17", "-ffp-contract=fast", "-static", "-s", *includes, *sources, "-o", program)
    return program


def archive(program: Path) -> bytes:
    """A file system of one program, /init, in the kernel's format (cpio's "newc")."""

    def entry(name: str, mode: int, data: bytes) -> bytes:
        fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        return b"".join(part + bytes(-len(part) % 4) for part in (header, data))

    return entry("init", 0o100755, program.read_bytes()) + entry("TRAILER!!!", 0, b"")


def make_disc(program: Path) -> None:
    """A CD image with the kernel, the program, and ISOLINUX, which starts them."""
    disc = PLACE / "disc"
    disc.mkdir(exist_ok=True)
    (kernel,) = (SYSTEM / "boot").glob("vmlinuz-*")
    loader = SYSTEM / "usr/lib/ISOLINUX/isolinux.bin", SYSTEM / "usr/lib/syslinux/modules/bios/ldlinux.c32"
    for file, name in ((kernel, "vmlinuz"), *((file, file.name) for file in loader)):
        (disc / name).write_bytes(file.read_bytes())
    (disc / "isolinux.cfg").write_text(BOOT)
    (disc / "initrd.gz").write_bytes(gzip.compress(archive(program), 1))
    boot = ("-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table")
    run(*start("xorriso", "-as", "mkisofs", "-quiet", "-o", PLACE / "boot.iso", *boot, disc))


def emulate(limit: float) -> str:
    """What the program wrote, from when it started; ends when the machine is switched off."""
    serial = PLACE / "serial.txt"
    serial.unlink(missing_ok=True)
    (PLACE / "bochsrc").write_text(MACHINE.format(place=PLACE, share=SYSTEM / "usr/share"))
    plugins = {"LTDL_LIBRARY_PATH": str(LIBRARIES / "bochs/plugins"), "BXSHARE": str(SYSTEM / "usr/share/bochs")}
    command = start("bochs-bin", "-q", "-f", PLACE / "bochsrc")
    began = time.monotonic()
    with (PLACE / "bochs.txt").open("w") as output:
        bochs = subprocess.Popen(command, env=os.environ | plugins, stdout=output, stderr=output)
        try:
            bochs.wait(limit)
        except subprocess.TimeoutExpired:
            print(f"emulate: stopped after {limit:.0f} s")
        finally:
            bochs.kill()
    print(f"emulate: {time.monotonic() - began:.0f} s in the emulator")
    text = serial.read_text(errors="replace") if serial.exists() else ""
    return text[text.find("CPU: ") :] if "CPU: " in text else f"the machine did not start; {PLACE} says more\n{text}"


def main() -> None:
    """Ends with an error unless everything passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=3600, help="seconds for the emulator (default: 3600)")
    limit = parser.parse_args().limit
    if not SYSTEM.exists():
        unpack()
    make_disc(compile_test())
    found = emulate(limit)
    print(found)
    if "RESULT: all passed" not in found:
        sys.exit("emulate: not all passed")


if __name__ == "__main__":
    main()
