"""Builds native/ into one shared library with a plain C interface, where a C compiler is.

Everything else about the package is in pyproject.toml. The library is loaded with ctypes and knows nothing of
Python, so wheels are tagged py3-none-PLATFORM. Without a compiler the install succeeds and numpy does the
work.
"""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

NATIVE = Path("native")
LIBRARY = "libbitbert.so"
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
        return str(Path(*fullname.split(".")[:-1]) / LIBRARY)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def get_libraries(self, ext: Extension) -> list[str]:
        return list(ext.libraries)

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (CCompilerError, ExecError, PlatformError, OSError) as error:
            print(f"bitbert: the native library was not built ({error}); the runtime will use numpy")

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


setup(
    ext_modules=[
        Extension(
            "bitbert.runtime.libbitbert",
            sources=sorted(str(path) for path in (NATIVE / "src").glob("*.c")),
            depends=[str(path) for path in NATIVE.rglob("*.h")],
            include_dirs=[str(NATIVE / "include"), str(NATIVE / "src")],
            libraries=["m"],
            extra_compile_args=COMPILE_FLAGS,
            extra_link_args=["-pthread"],
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
