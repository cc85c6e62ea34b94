"""Runs of the trainer in forked children: a process each, as in life, without importing DeepSpeed anew each time."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests.conftest import REPOSITORY
from tests.pretrain.settings import SMOKE, distilling_overrides

WRITERS = (
    "bitbert/files.py",
    "pretrain/checkpoint.py",
    "pretrain/manifest.py",
    "pretrain/tensor_file.py",
    "pretrain/keeper.py",
)


def warm_up() -> None:
    """Import in this process what every child needs."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    import deepspeed  # noqa: F401

    import bitbert.pretrain.__main__
    import bitbert.pretrain.loop  # noqa: F401


@dataclass
class Child:
    """A forked run of one rank."""

    pid: int
    log: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def ended(self) -> bool:
        """Whether the run is over, however; :meth:`wait` still has its exit code."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, timeout_s: float = 120) -> int:
        """The exit code, negative for a signal; a child that hangs is killed and fails the test."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        self.kill()
        os.waitpid(self.pid, 0)
        raise AssertionError(f"child still runs after {timeout_s} s:\n{self.text()[-2000:]}")


def tiny_settings(shards: Path, teacher: Path, output: Path) -> list[str]:
    """Overrides of the smoke config for runs of 1, 2 and 4 ranks into ``output``."""
    return [
        *distilling_overrides(shards, teacher),
        "micro_batch_size=2",  # divides the global batch over all of them: dropout depends on it
        f"output={output}",
    ]


def die_at_line(number: int) -> None:
    """SIGKILL this process before the ``number``-th line that it runs of the code that writes checkpoints.

    Deterministic, and nothing in that code knows about it.
    """
    counted = 0

    def in_line(frame: FrameType, event: str, argument: object) -> Callable[..., object]:
        nonlocal counted
        counted += event == "line"
        if counted == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return in_line

    def in_call(frame: FrameType, event: str, argument: object) -> Callable[..., object] | None:
        return in_line if frame.f_code.co_filename.endswith(WRITERS) else None

    sys.settrace(in_call)


def start(
    overrides: list[str],
    log: Path,
    *,
    environment: dict[str, str] | None = None,
    prepare: Callable[[], object] = lambda: None,
) -> Child:
    """Fork ``bitbert-pretrain smoke.yaml overrides``; ``prepare`` runs in the child before it, to plant a fault."""
    log.touch()  # there to be read before the child has written to it
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False, encoding="utf-8")  # noqa: SIM115 (not pytest's)
        sys.stderr = open(2, "w", buffering=1, closefd=False, encoding="utf-8")  # noqa: SIM115
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.environ.update(environment or {})
        os.chdir(REPOSITORY)
        prepare()
        sys.argv = ["bitbert-pretrain", str(SMOKE), *overrides]
        from bitbert.pretrain.__main__ import main

        main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(bool(stopped.code))
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start_ranks(
    overrides: list[str], folder: Path, count: int, *, prepare: Callable[[int], object] = lambda rank: None
) -> list[Child]:
    """As :func:`start`, ``count`` ranks on this machine; one log a rank in ``folder``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        start(
            overrides,
            folder / f"rank-{rank}.log",
            environment={
                "RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            prepare=lambda rank=rank: prepare(rank),
        )
        for rank in range(count)
    ]
