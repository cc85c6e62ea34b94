"""Rank, world size and local rank from Slurm, torchrun or the deepspeed launcher; nothing heavy is imported."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from bitbert.errors import UserError


@dataclass(frozen=True)
class Topology:
    """Where this process stands in the job, and where rank 0 listens."""

    rank: int
    world_size: int
    local_rank: int
    master_address: str
    master_port: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def environment(self) -> dict[str, str]:
        """The variables that torch.distributed reads."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": str(self.master_port),
        }


def detect_topology(environment: Mapping[str, str] = os.environ) -> Topology:
    """Read the launcher's variables: torchrun or deepspeed first, then a Slurm step (srun), else one process.

    A Slurm batch shell without srun has job variables but no SLURM_STEP_ID: it is one process.

    Raises:
        UserError: a launcher's variables are incomplete or not numbers.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        address = environment.get("MASTER_ADDR", "127.0.0.1")
        port = _integer(environment, "MASTER_PORT", default=29500)
    elif "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "127.0.0.1")
        address = environment.get("MASTER_ADDR") or first_node(nodes)
        # From the job id, below the ephemeral range: no clash between jobs, no random port to agree on.
        port = _integer(
            environment,
            "MASTER_PORT",
            default=20000 + _integer(environment, "SLURM_JOB_ID", default=0) % 12000,
        )
    else:
        return Topology(0, 1, 0, "127.0.0.1", 0)
    rank, world_size, local_rank = (_integer(environment, name) for name in names)
    if not 0 <= rank < world_size:
        raise UserError(f"{names[0]}={rank} and {names[1]}={world_size} do not fit; start one task per rank")
    return Topology(rank, world_size, local_rank, address, port)


def first_node(node_list: str) -> str:
    """First host of a Slurm node list: ``n[03-05,9],m1`` -> ``n03``."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]+)\])?([^,]*)", node_list)
    if match is None:
        raise UserError(f"SLURM node list {node_list!r} names no node; set MASTER_ADDR to rank 0's host")
    prefix, ranges, suffix = match.groups()
    first = re.split(r"[,-]", ranges)[0] if ranges else ""
    return f"{prefix}{first}{suffix}"


def _integer(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None:
        if default is None:
            raise UserError(
                f"the launcher set no {name}; start with torchrun, deepspeed or srun, or unset its variables"
            )
        return default
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{name}={text!r}, wanted an integer") from error


def log(message: str) -> None:
    """One line of the run's log, on stderr, so that stdout stays for results."""
    print(message, file=sys.stderr, flush=True)
