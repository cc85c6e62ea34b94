"""--dry-run: what a run would do, checked and counted on a login node without starting it."""

from bitbert.accounting import MIB, format_table, packed_config, shape_of, table
from bitbert.config import config_yaml
from bitbert.distributed import Topology, detect_topology
from bitbert.model import BitBertForPreTraining

from .config import PretrainConfig
from .optim import build_optimizer
from .phases import Phase
from .run import check_run
from .run_folder import refuse_other_run
from .scaling import CLUSTERS
from .scaling_table import Workload, memory_table, speed_table, whole_values


def describe_run(config: PretrainConfig) -> str:
    """The resolved config, then counts, tokens and memory.

    Raises:
        UserError: whatever would stop the run before its first step.
    """
    refuse_other_run(config)
    topology = detect_topology()
    for section in config.resolved_phases():
        section.accumulation_steps(topology.world_size)
    run = check_run(config)
    student = BitBertForPreTraining(run.student_config)
    build_optimizer(student, config.optimizer)  # for what it refuses
    sizes = [parameter.numel() for parameter in student.parameters()]
    trained = sum(sizes)
    frozen = sum(parameter.numel() for parameter in run.teacher.parameters())
    shape = shape_of(run.student_config)
    figures = table(
        shape, run.max_length, packed_config(shape, run.student_config.to_dict(), method=config.model.method)
    )
    lines = [
        config_yaml(config).rstrip(),
        "",
        f"student               {trained:,} parameters, method {config.model.method}",
        f"teacher               {frozen:,} parameters, frozen",
        f"checkpoint            {trained * 12 / MIB:,.0f} MiB each, {config.keep_checkpoints} kept",
    ]
    for number, phase in enumerate(run.phases, start=1):
        work = Workload(
            run.student_config,
            config.loss,
            trained,
            whole_values(sizes),
            frozen,
            int(phase.train.reader.manifest["max_length"]),
            phase.global_batch_size,
            phase.micro_batch_size,
            config.data.mask_probability,
        )
        lines += ["", f"phase {number} of {len(run.phases)}", *_phase_lines(phase, topology)]
        lines += [f"memory a rank, of which the config asks for ZeRO stage {config.zero_stage}:"]
        lines += memory_table(work, topology.world_size)
        for cluster in CLUSTERS:
            lines += ["", *speed_table(work, cluster, stage=config.zero_stage)]
    return "\n".join([*lines, "", format_table(figures)])


def _phase_lines(phase: Phase, topology: Topology) -> list[str]:
    manifest = phase.train.reader.manifest
    steps = phase.end_step - phase.first_step
    sequences = steps * phase.global_batch_size
    micro_batches = phase.global_batch_size // (phase.micro_batch_size * topology.world_size)
    return [
        f"ranks                 {topology.world_size}, {micro_batches} micro-batches of {phase.micro_batch_size} a "
        "rank and step",
        f"training data         {manifest['rows']:,} rows, {manifest['tokens']:,} tokens, "
        f"at most {manifest['max_length']} a row",
        f"run                   {steps:,} steps, {sequences:,} sequences, "
        f"{sequences / manifest['rows']:.2f} epochs, "
        f"{sequences * manifest['tokens'] / manifest['rows']:,.0f} tokens",
    ]
