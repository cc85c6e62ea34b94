"""Huge pages behind large tensors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitbert.memory import VARIABLE, use_huge_pages
from tests.conftest import REPOSITORY

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FILL = """
import resource
from bitbert.memory import use_huge_pages
use_huge_pages()
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(16 << 20).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def fill(**environment: str) -> int:
    """Page faults of filling 64 MiB in a process of its own."""
    command = [sys.executable, "-c", FILL]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment)
    return int(result.stdout)


def test_large_tensors_lie_on_huge_pages() -> None:
    small_pages = fill(**{VARIABLE: "0"})
    assert small_pages >= 16 << 10
    kernel_has_them = SETTING.is_file() and "[never]" not in SETTING.read_text(encoding="ascii")
    assert fill() < small_pages / (4 if kernel_has_them else 0.9)


@pytest.mark.parametrize("room", ["pretrain", "finetune"])
def test_doors_ask_for_them_before_they_import_torch(room: str) -> None:
    code = f"import sys, bitbert.{room}.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=REPOSITORY).returncode == 0


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    use_huge_pages()
    assert os.environ[VARIABLE] == "0"
