"""Builds native/ into shared libraries with a plain C interface, where a C compiler is.

Everything else about the package is in pyproject.toml. The libraries are loaded with ctypes and know nothing of
Python, so wheels are tagged py3-none-PLATFORM. Without a compiler the install succeeds, and numpy (the
runtime) or torch (training) does the work.
"""

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

NATIVE = Path("native")
# No -march: each file of native/src names the instructions of its functions and runs only where they exist.
COMPILE_FLAGS = [
    "-std=c11",
    "-O3",
    "-g0",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wno-psabi",
    "-pthread",
]


class BuildNative(build_ext):
    """An extension without Python: a fixed file name, no Python libraries, a failure only reported."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def get_libraries(self, ext: Extension) -> list[str]:
        return list(ext.libraries)

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (CCompilerError, ExecError, PlatformError, OSError) as error:
            print(f"bitbert: the native library was not built ({error}); numpy or torch will do its work")

    def copy_extensions_to_source(self) -> None:
        for extension in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(extension.name)
            if built.is_file():
                self.copy_file(str(built), self.get_ext_filename(extension.name))

    def get_outputs(self) -> list[str]:
        return [name for name in super().get_outputs() if Path(name).is_file()]


class PlatformWheel(bdist_wheel):
    """One wheel a platform for every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def extension(name: str, sources: list[Path], include: Path) -> Extension:
    return Extension(
        name,
        sources=sorted(map(str, sources)),
        depends=[str(path) for path in NATIVE.rglob("*.h")],
        include_dirs=[str(include), str(NATIVE / "src")],
        libraries=["m"],
        extra_compile_args=COMPILE_FLAGS,
        extra_link_args=["-pthread"],
    )


EXTENSIONS = [extension("bitbert.runtime.libbitbert", list((NATIVE / "src").glob("*.c")), NATIVE / "include")]
if platform.machine() == "x86_64":
    training = [*(NATIVE / "training").glob("*.c"), NATIVE / "src" / "pool.c"]
    EXTENSIONS.append(extension("bitbert.model.libbitbert_training", training, NATIVE / "training"))

setup(ext_modules=EXTENSIONS, cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel})
