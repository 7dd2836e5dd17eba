"""The one extension: CPU kernels against torch's stable ABI, so one wheel serves torch >= 2.10 and Python >= 3.10."""

from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

extension = CppExtension(
    "torchdcn._C",
    sorted(map(str, Path("csrc").glob("*.cpp"))),
    include_dirs=["csrc"],
    depends=sorted(map(str, Path("csrc").glob("*.h"))),
    define_macros=[
        ("Py_LIMITED_API", "0x030A0000"),
        ("TORCH_TARGET_VERSION", "0x020a000000000000"),
        ("TORCH_STABLE_ONLY", None),
    ],
    # -ffp-contract=fast: a * b + c becomes one fused instruction where the CPU has it.
    extra_compile_args=[
        "-O3",
        "-std=c++17",
        "-ffp-contract=fast",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Werror=vla",
    ],
    py_limited_api=True,
    optional=True,  # without a compiler the install succeeds, and torchdcn.ops.available_backends() says so
)

setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=False)},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
