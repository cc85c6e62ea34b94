"""What a run ran on: packages, source, machine and launcher, recorded at every start."""

import os
import platform
import subprocess
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from bitbert.distributed import Topology
from bitbert.files import read_json, write_json_atomically

ENVIRONMENT_FILE = "environment.json"
_LAUNCHER_VARIABLES = ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID")


def record_environment(folder: Path, topology: Topology, step: int) -> None:
    """Append this start to ``folder/environment.json``; a run that was resumed elsewhere lists every place."""
    path = folder / ENVIRONMENT_FILE
    starts = read_json(path, "environment record") if path.exists() else []
    write_json_atomically(path, [*starts, {"step": step, **describe_environment(topology)}])


def describe_environment(topology: Topology) -> dict[str, Any]:
    """The machine of this rank, the packages and the launcher, for JSON."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "world_size": topology.world_size,
        "launcher": {name: os.environ[name] for name in _LAUNCHER_VARIABLES if name in os.environ},
        "hardware": {
            "host": platform.node(),
            "cpu": _cpu_model(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        },
        "packages": _packages(),
    }


def _packages() -> dict[str, str]:
    """Versions by name; what an interrupted removal left of a package is none."""
    found = {}
    for each in distributions():
        try:
            found[each.metadata["Name"]] = each.version
        except Exception:  # its type, or a name of None, depends on the version of Python
            continue
    return {name: found[name] for name in sorted(filter(None, found))}


def _git(*arguments: str) -> str | None:
    """Output of a git command on this source tree, or None where it is no repository or there is no git."""
    source = Path(__file__).resolve().parent.parent
    if not (source / ".git").exists():
        return None  # installed somewhere: a repository further up would be another one
    try:
        result = subprocess.run(
            ["git", "-C", str(source), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU implementer"))]
    return names[0] if names else platform.processor()
