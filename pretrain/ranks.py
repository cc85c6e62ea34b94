"""What ranks tell each other outside of the gradient: a value of rank 0, sums, and whether their replicas agree."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bitbert.distributed import Topology
from bitbert.errors import UserError

_CHUNK = 2**20  # elements hashed at a time: bounds the temporary memory
_HASH_PRIME = 0x100000001B3


class ReplicaError(UserError):
    """Ranks that should hold the same parameters do not; raised on all ranks."""


def share_json(value: Any, topology: Topology, device: torch.device) -> Any:
    """Rank 0's ``value``, which JSON can hold, on every rank."""
    if topology.world_size == 1:
        return value
    data = json.dumps(value).encode() if topology.is_main else b""
    length = torch.tensor([len(data)], device=device)
    dist.broadcast(length, src=0)
    buffer = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if topology.is_main:
        buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    dist.broadcast(buffer, src=0)
    return json.loads(bytes(buffer.tolist()))


def bits_hash(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """A 64-bit hash of the bit patterns of ``tensors``, computed where they are, as a (1,) int64 tensor.

    Every 32-bit (or 8-bit) word is multiplied by an odd number of its own place and the products are summed, all in
    wrap-around integers: a single word that differs always changes the sum, whatever bits of it differ. The order of
    the tensors counts as well.
    """
    places = torch.arange(_CHUNK, dtype=torch.int32, device=device) * 2 + 1
    total = torch.zeros(1, dtype=torch.int64, device=device)
    for tensor in tensors:
        flat = tensor.detach().contiguous().reshape(-1)
        words = flat.view(torch.int32) if flat.element_size() % 4 == 0 else flat.view(torch.uint8).to(torch.int32)
        for chunk in words.split(_CHUNK):
            total = total * _HASH_PRIME + (chunk * places[: len(chunk)]).sum(dtype=torch.int64)
    return total


def check_replicas(tensors: Iterable[Tensor], step: int, topology: Topology, device: torch.device) -> None:
    """Compare the ranks' hashes of ``tensors``.

    Raises:
        ReplicaError: they differ; names the ranks outside of the largest group that agrees.
    """
    if topology.world_size == 1:
        return
    hashes = torch.zeros(topology.world_size, dtype=torch.int64, device=device)
    hashes[topology.rank : topology.rank + 1] = bits_hash(tensors, device)
    dist.all_reduce(hashes)
    found = hashes.tolist()
    if len(set(found)) == 1:
        return
    common = max(Counter(found).items(), key=lambda item: (item[1], item[0] == found[0]))[0]
    odd = [str(rank) for rank, value in enumerate(found) if value != common]
    raise ReplicaError(
        f"step {step}: the parameters of rank {', '.join(odd)} differ from those of the other ranks; "
        "look for bad memory on that rank's machine, then start again from the last checkpoint"
    )
