"""Memory a rank, communication a step and expected speed, from one rank to a thousand: closed forms.

The state of training in float32 with P trained values, P_m of them masters in the optimizer, on N ranks. AdamW and LAMB
keep two moments. DeepSpeed's ZeRO optimizers update a copy of the weights of their own, also in float32:

    stage   weights            gradients   masters   moments
    0       4 P                4 P         -         8 P
    1       4 P                4 P / N *   4 P / N   8 P / N
    2       4 P                4 P / N     4 P / N   8 P / N
    3       4 P / N + whole    4 P / N     4 P / N   8 P / N

    *  after the reduction; 4 P while micro-batches accumulate, which stage 2 avoids by reducing each of them
    masters: the copy of the weights that the optimizer updates
    whole: small tensors, of which stage 3 keeps a whole copy beside its part
    Gradients that wait in a bucket for their reduction, and what stage 3 gathers for a module, come on top for a while.

Payload of collectives a rank and step, with k micro-batches; each element that a rank hands in counts once:

    stage 0   all-reduce 4 P
    stage 1   reduce 4 P, all-gather 4 P
    stage 2   reduce 4 P k, all-gather 4 P
    stage 3   reduce 4 P k, all-gather 4 (P - whole) k + 4 whole

With its default limits (1e9 values live, reused within 1e9) DeepSpeed keeps what stage 3 gathered for the forward pass
until the backward pass has used it: a BERT is gathered once a micro-batch, and its weights are whole for that while.

On the wire a ring sends 2 (N - 1) / N of an all-reduce's payload, (N - 1) / N of a reduction's or a gather's.
``benchmarks/bench_scaling.py`` counts tensors and collectives of real runs and holds them against these forms.
"""

import math
from dataclasses import dataclass

STAGES = (0, 1, 2, 3)
FLOAT = 4  # bytes


@dataclass(frozen=True)
class StateBytes:
    """Bytes a rank holds of the student between backward pass and update, without activations."""

    weights: float
    gradients: float
    masters: float
    moments: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.masters + self.moments


def state_bytes(
    num_parameters: int, stage: int, world_size: int, *, whole: int = 0, accumulating: bool = False
) -> StateBytes:
    """Weights, gradients, masters and moments of one rank; table above.

    Args:
        num_parameters: trained values of the student, shared ones once.
        whole: values that stage 3 keeps whole on every rank, where there is more than one.
        accumulating: at the largest moment of a step with several micro-batches, instead of after the reduction.
    """
    everything = float(FLOAT * num_parameters)
    part = everything / world_size
    return StateBytes(
        weights=part + (FLOAT * whole if world_size > 1 else 0) if stage == 3 else everything,
        gradients=part if stage >= 2 or (stage == 1 and not accumulating) else everything,
        masters=part if stage else 0.0,
        moments=2 * part if stage else 2 * everything,
    )


@dataclass(frozen=True)
class Payload:
    """Bytes that one rank hands to collectives a step; an all-gather counts what it yields."""

    all_reduce: float
    reduce: float
    all_gather: float

    def wire(self, world_size: int) -> float:
        """Bytes that one rank sends, by ring algorithms."""
        share = (world_size - 1) / world_size
        return share * (2 * self.all_reduce + self.reduce + self.all_gather)


def payload(num_parameters: int, stage: int, num_micro_batches: int, *, whole: int = 0) -> Payload:
    """Collectives of a step; table above."""
    everything, kept = float(FLOAT * num_parameters), float(FLOAT * whole)
    if stage == 0:
        return Payload(everything, 0.0, 0.0)
    gathered = (everything - kept) * num_micro_batches + kept if stage == 3 else everything
    return Payload(0.0, everything * (num_micro_batches if stage >= 2 else 1), gathered)


@dataclass(frozen=True)
class Cluster:
    """Machines for an estimate; every figure is an assumption that docs/scaling.md names.

    Attributes:
        peak_tflops: of a GPU, dense, in the precision of the matrix products.
        mfu: share of the peak that the step's own arithmetic reaches on one GPU without communication.
        node_gpus: GPUs a node.
        node_gb_s: what a GPU can send within its node, GB/s, in one direction.
        network_gb_s: what a GPU can send to other nodes, GB/s.
        efficiency: share of these rates that collectives reach.
        latency_s: of one hop of a collective between nodes.
        buckets: collectives into which a step's gradients are cut.
    """

    name: str
    peak_tflops: float
    mfu: float
    node_gpus: int = 8
    node_gb_s: float = 300.0
    network_gb_s: float = 25.0
    efficiency: float = 0.7
    latency_s: float = 20e-6
    buckets: int = 10


A100 = Cluster("A100 80 GB, NVLink 3, 200 Gb/s a GPU", 312.0, 0.25, node_gb_s=300.0, network_gb_s=25.0)
H100 = Cluster("H100 80 GB, NVLink 4, 400 Gb/s a GPU", 989.0, 0.20, node_gb_s=450.0, network_gb_s=50.0)
CLUSTERS = (A100, H100)


@dataclass(frozen=True)
class Estimate:
    """One line of a scaling table; times in seconds a step, nothing overlapped."""

    world_size: int
    num_micro_batches: int
    compute_s: float
    communication_s: float
    tokens_per_s: float

    @property
    def step_s(self) -> float:
        return self.compute_s + self.communication_s

    @property
    def efficiency(self) -> float:
        """Share of the step that computes."""
        return self.compute_s / self.step_s


def estimate(
    cluster: Cluster,
    *,
    world_size: int,
    stage: int,
    num_parameters: int,
    operations_per_row: float,
    row_tokens: int,
    global_batch_size: int,
    micro_batch_size: int,
) -> Estimate:
    """Time of a step: arithmetic at the assumed MFU, then communication over the slowest link, not overlapped.

    Within a node the ring runs over the node's links; across nodes every GPU sends its share through its own network
    port. Latency is that of a tree, 2 log2(N) hops a bucket.
    """
    micro_batches = max(1, global_batch_size // (micro_batch_size * world_size))
    rows = global_batch_size / world_size
    compute = rows * operations_per_row / (cluster.peak_tflops * 1e12 * cluster.mfu)
    sent = payload(num_parameters, stage, micro_batches).wire(world_size)
    rate = cluster.node_gb_s if world_size <= cluster.node_gpus else cluster.network_gb_s
    hops = 2 * math.log2(world_size) if world_size > 1 else 0
    communication = sent / (rate * 1e9 * cluster.efficiency) + hops * cluster.latency_s * cluster.buckets
    tokens = global_batch_size * row_tokens / (compute + communication)
    return Estimate(world_size, micro_batches, compute, communication, tokens)
