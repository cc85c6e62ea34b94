"""Runs in forked children of the test process: importing DeepSpeed once is most of what a process of their own costs.

A run must not happen in the test process itself: a process group that a failed run leaves would stay for later tests.
"""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from bitbert.config import load_config
from bitbert.pretrain.config import PretrainConfig
from bitbert.pretrain.loop import pretrain
from bitbert.tracking import read_metrics
from tests.pretrain import forked
from tests.pretrain.settings import SMOKE

Result = TypeVar("Result")


def as_killed_after(step: int, finished: Path, folder: Path) -> Path:
    """A copy of a finished run in ``folder`` as a kill after its checkpoint of ``step`` would have left it."""
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "final")
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    (folder / "checkpoints" / "latest").write_text(f"step-{step:08d}\n")
    return folder


def in_child(act: Callable[[], Result]) -> Result:
    """What ``act`` returns or raises in a forked child."""
    forked.warm_up()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        result: Any = None
        raised: BaseException | None = None
        try:
            result = act()
        except BaseException as error:
            raised = error
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump((raised, result), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        raised, result = pickle.load(pipe)
    os.waitpid(child, 0)
    if raised is not None:
        raise raised
    return result


def run_here(output: Path, *overrides: str, notes: tuple[list[Any], ...] = ()) -> list[dict[str, Any]]:
    """Run the smoke config with ``overrides`` to its end; returns its metrics, or raises what the run raised.

    Args:
        notes: lists that a spy planted by the test fills during the run.
    """
    config = load_config(PretrainConfig, SMOKE, [f"output={output}", *overrides])

    def act() -> tuple[list[Any], ...]:
        pretrain(config)
        return notes

    filled = in_child(act)
    for note, content in zip(notes, filled, strict=True):
        note[:] = content
    return read_metrics(output / "metrics.jsonl")
