"""The C side on its own: builds without Python, runs elsewhere, survives sanitizers and damaged files."""

import os
import platform
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitbert.runtime import Runtime
from tests.conftest import REPOSITORY
from tests.golden.make_golden import PACKED, PAIRS

NATIVE = REPOSITORY / "native"
SOURCES = sorted((NATIVE / "src").glob("*.c"))
STRICT = ["-std=c11", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-pthread"]
INCLUDE = [f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'src'}"]
SANITIZE = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FUZZ_SECONDS = 3

# compiler, extra flags, command that runs the result; those whose tools this machine has are tested.
TARGETS = {
    "gcc": ("gcc", ["-O2"], []),
    "clang": ("clang", ["-O2"], []),
    "x86-64 of 2008": ("gcc", ["-O2", "-static"], ["qemu-x86_64", "-cpu", "Nehalem"]),
    "aarch64": ("aarch64-linux-gnu-gcc", ["-O2", "-static"], ["qemu-aarch64"]),
}


def has_tools(target: str) -> bool:
    compiler, _, runner = TARGETS[target]
    return bool(shutil.which(compiler)) and (not runner or bool(shutil.which(runner[0])))


def run_compiler(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def compile_program(compiler: str, output: Path, main: Path, *flags: str) -> Path:
    run_compiler(compiler, *STRICT, *INCLUDE, *flags, str(main), *map(str, SOURCES), "-lm", "-o", str(output))
    return output


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The example and the fuzz target with sanitizers; the library's part of them is compiled once."""
    folder = tmp_path_factory.mktemp("sanitized")
    mains = {"answer": NATIVE / "examples" / "answer.c", "fuzz": NATIVE / "fuzz" / "fuzz_packed.c"}
    objects = []
    for source in SOURCES:
        objects.append(folder / f"{source.stem}.o")
        run_compiler("cc", *STRICT, *INCLUDE, *SANITIZE, "-c", str(source), "-o", str(objects[-1]))
    for name, main in mains.items():
        run_compiler("cc", *STRICT, *INCLUDE, *SANITIZE, str(main), *map(str, objects), "-lm", "-o", str(folder / name))
    return {name: folder / name for name in mains}


def answer(program: Path, runner: list[str], ids: list[Any], folder: Path = PACKED, **env: str) -> list[float]:
    command = [*runner, str(program), str(folder), *map(str, ids)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env})
    assert result.returncode == 0, result.stderr
    return [float(line) for line in result.stdout.split()]


@pytest.mark.parametrize("target", [target for target in TARGETS if has_tools(target)])
def test_the_example_answers_like_python(tmp_path: Path, target: str) -> None:
    compiler, flags, runner = TARGETS[target]
    program = compile_program(compiler, tmp_path / "answer", NATIVE / "examples" / "answer.c", *flags)
    for ids in ([2, 40, 41, 3], [2, *range(30, 44), 3]):
        expected = Runtime.load(PACKED).logits(ids, [0] * len(ids))
        np.testing.assert_allclose(answer(program, runner, ids), expected, atol=2e-6)
        assert answer(program, runner, ids) == answer(program, runner, ids, BITBERT_ISA="portable")
    for first, second in (([2, 40, 3], [50, 51, 3]), ([2, 3], [60])):
        types = [0] * len(first) + [1] * len(second)
        for folder in (PACKED, PAIRS):
            expected = Runtime.load(folder).logits(first + second, types)
            np.testing.assert_allclose(answer(program, runner, [*first, "--", *second], folder), expected, atol=2e-6)


def test_the_example_reports_mistakes_in_a_sentence(sanitized: dict[str, Path], tmp_path: Path) -> None:
    for arguments, message in (
        ((tmp_path, "5"), "config.json' cannot be read"),
        ((PACKED, "-1"), "token id -1, wanted 0 to"),
        ((PACKED, *(["5"] * 17)), "sequence of 17 tokens, wanted 1 to 16"),
        ((PAIRS, "5", "6"), "a sequence without a second text, wanted token types 0 and then 1"),
        ((PAIRS, "--", "6"), "a sequence without a second text"),
    ):
        command = [str(sanitized["answer"]), *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_sanitizers_see_nothing_in_the_example(sanitized: dict[str, Path]) -> None:
    for isa in ("", "portable"):
        assert len(answer(sanitized["answer"], [], [2, *range(30, 44), 3], BITBERT_ISA=isa)) == 3
        for first in (1, 8, 15):
            ids = [2, *range(30, 45)]
            found = answer(sanitized["answer"], [], [*ids[:first], "--", *ids[first:]], PAIRS, BITBERT_ISA=isa)
            assert len(found) == 3


@pytest.mark.parametrize("head", ["classification", "pair_classification"])
def test_fuzzed_files_end_in_sentences(sanitized: dict[str, Path], tmp_path: Path, head: str) -> None:
    folder = PAIRS if head == "pair_classification" else PACKED
    config, weights = ((folder / name).read_bytes() for name in ("config.json", "model.safetensors"))
    seed = tmp_path / "seed"
    seed.write_bytes(struct.pack("<I", len(config)) + config + weights)
    command = [str(sanitized["fuzz"]), str(seed), str(FUZZ_SECONDS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[0]) > 100


def setup_py(tree: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", *arguments]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, env={**os.environ, **env})


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """What a source distribution holds, without anything built."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tree)
    for name in ("bitbert", "native", "data_prep", "pretrain", "finetune", "checkpoints"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tree


def test_the_wheel_is_for_any_python_of_the_platform(source_tree: Path) -> None:
    shutil.copytree(PACKED, source_tree / "checkpoints" / "bitbert-golden")
    result = setup_py(source_tree, "bdist_wheel", "-d", "out")
    assert result.returncode == 0, result.stderr
    (wheel,) = (source_tree / "out").glob("*.whl")
    assert "-py3-none-" in wheel.name
    assert "-any" not in wheel.name
    built = set(zipfile.ZipFile(wheel).namelist())
    assert "bitbert/runtime/libbitbert.so" in built
    assert {f"bitbert/checkpoints/bitbert-golden/{file.name}" for file in PACKED.iterdir()} <= built
    assert ("bitbert/model/libbitbert_training.so" in built) == (platform.machine() == "x86_64")


def test_without_a_compiler_the_build_succeeds_without_the_library(source_tree: Path) -> None:
    result = setup_py(source_tree, "build", "-b", "out", CC="/nonexistent/cc")
    assert result.returncode == 0, result.stderr
    assert "the native library was not built" in result.stdout
    assert not list((source_tree / "out").rglob("*.so"))
    assert list((source_tree / "out").rglob("numpy_bitops.py"))


def test_training_kernels_compile_without_warnings(tmp_path: Path) -> None:
    """On other architectures the files are empty and the library is not built."""
    for source in sorted((NATIVE / "training").glob("*.c")):
        flags = [*STRICT, "-O1", f"-I{NATIVE / 'training'}"]
        run_compiler("cc", *flags, "-c", str(source), "-o", str(tmp_path / f"{source.stem}.o"))
