"""Ranks from the variables of each launcher."""

import pytest

from bitbert.distributed import detect_topology, first_node
from bitbert.errors import UserError


def test_alone() -> None:
    topology = detect_topology({})
    assert (topology.rank, topology.world_size, topology.local_rank) == (0, 1, 0)


def test_torchrun_and_deepspeed() -> None:
    variables = {
        "RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29400",
    }
    topology = detect_topology(variables)
    assert topology.environment() == variables
    assert not topology.is_main


def test_slurm_step() -> None:
    variables = {
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_NODELIST": "gpu[03-06]",
        "SLURM_JOB_ID": "12345",
    }
    topology = detect_topology(variables)
    assert (topology.rank, topology.world_size, topology.local_rank) == (5, 8, 1)
    assert (topology.master_address, topology.master_port) == ("gpu03", 20345)


def test_batch_shell_is_one_process() -> None:
    assert detect_topology({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}).world_size == 1


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-3,7],m2", "n1"),
        ("n[09,11]", "n09"),
        ("a-b-1,a-b-2", "a-b-1"),
        ("rack[1-2]-gpu", "rack1-gpu"),
    ],
)
def test_first_node(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "set no LOCAL_RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "do not fit"),
        ({"RANK": "zero", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "wanted an integer"),
    ],
)
def test_incomplete_variables(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        detect_topology(variables)
