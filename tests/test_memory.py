"""Memory behind large tensors: on huge pages, and kept when it is freed."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from bitbert.memory import HUGE_PAGES, MAX_MAPPED, prepare_memory
from tests.conftest import REPOSITORY

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FILL = """
import resource
from bitbert.memory import prepare_memory
prepare_memory()
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(10 << 20).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, *later = [faults() for _ in range(72)]
print(first, sorted(later[-8:])[4])
"""
SMALL_PAGES = 10 << 10  # of 40 MiB, more than what the C library keeps by itself (32 MiB)


GIVE_BACK = """
from bitbert.memory import give_back_memory, prepare_memory
prepare_memory()
import torch
def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096
kept_apart = []
for _ in range(8):
    tensor = torch.empty(16 << 20).fill_(1.0)
    kept_apart.append(torch.empty(1 << 10).fill_(1.0))
del tensor
before = resident()
give_back_memory()
print(before - resident(), sum(each.sum().item() for each in kept_apart))
"""


def fill(**environment: str) -> tuple[int, int]:
    """Page faults of filling 40 MiB the first time, and once that has settled, in a process of its own.

    Some heaps have the tensor where glibc's thread cache takes what alignment leaves beside it: what is freed is
    then a few bytes too small for the next tensor. Each one moves on, out of the cache's sizes within 32.
    """
    command = [sys.executable, "-c", FILL]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment)
    first, later = map(int, result.stdout.split())
    return first, later


def test_large_tensors_lie_on_huge_pages_and_keep_them() -> None:
    first, later = fill()
    kernel_has_them = SETTING.is_file() and "[never]" not in SETTING.read_text(encoding="ascii")
    assert first < SMALL_PAGES / (4 if kernel_has_them else 0.9)
    if platform.libc_ver()[0] == "glibc":
        assert later < 100


def test_the_environment_decides_for_the_process() -> None:
    first, later = fill(**{HUGE_PAGES: "0", MAX_MAPPED: "65536"})
    assert min(first, later) >= SMALL_PAGES


def test_freed_memory_is_given_back_when_asked() -> None:
    command = [sys.executable, "-c", GIVE_BACK]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env={})
    given_back, total = map(float, result.stdout.split())
    assert given_back >= (60 << 20 if platform.libc_ver()[0] == "glibc" else 0)
    assert total == 8 << 10


@pytest.mark.parametrize("room", ["pretrain", "finetune"])
def test_doors_ask_for_them_before_they_import_torch(room: str) -> None:
    code = f"import sys, bitbert.{room}.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=REPOSITORY).returncode == 0


def test_the_environment_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HUGE_PAGES, "0")
    monkeypatch.setenv(MAX_MAPPED, "65536")
    prepare_memory()
    assert (os.environ[HUGE_PAGES], os.environ[MAX_MAPPED]) == ("0", "65536")
