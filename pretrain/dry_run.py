"""--dry-run: what a run would do, checked and counted on a login node without starting it."""

from bitbert.accounting import MIB, format_table, packed_config, shape_of, table
from bitbert.config import config_yaml
from bitbert.distributed import detect_topology
from bitbert.model import BitBertForPreTraining

from .config import PretrainConfig
from .run import check_run

_BYTES_TRAINED = 16  # float32 weight, gradient and AdamW's two moments


def describe_run(config: PretrainConfig) -> str:
    """The resolved config, then counts, tokens and memory.

    Raises:
        UserError: whatever would stop the run before its first step.
    """
    topology = detect_topology()
    accumulation = config.resolved_phases()[0].accumulation_steps(topology.world_size)
    run = check_run(config)
    manifest = run.train.reader.manifest
    student = BitBertForPreTraining(run.student_config)
    trained = sum(parameter.numel() for parameter in student.parameters())
    frozen = sum(parameter.numel() for parameter in run.teacher.parameters())
    sequences = config.steps * config.global_batch_size
    shape = shape_of(run.student_config)
    figures = table(
        shape, run.max_length, packed_config(shape, run.student_config.to_dict(), method=config.model.method)
    )
    lines = [
        config_yaml(config).rstrip(),
        "",
        f"ranks                 {topology.world_size}, {accumulation} micro-batches of {config.micro_batch_size} a "
        "rank and step",
        f"student               {trained:,} parameters, method {config.model.method}",
        f"teacher               {frozen:,} parameters, frozen",
        f"training data         {manifest['rows']:,} rows, {manifest['tokens']:,} tokens, "
        f"at most {manifest['max_length']} a row",
        f"run                   {config.steps:,} steps, {sequences:,} sequences, "
        f"{sequences / manifest['rows']:.2f} epochs, "
        f"{sequences * manifest['tokens'] / manifest['rows']:,.0f} tokens",
        f"memory a rank         {trained * _BYTES_TRAINED / MIB:,.0f} MiB weights, gradients, moments; "
        f"{frozen * 4 / MIB:,.0f} MiB teacher; activations not counted",
        f"checkpoint            {trained * 12 / MIB:,.0f} MiB each, {config.keep_checkpoints} kept",
        "",
        format_table(figures),
    ]
    return "\n".join(lines)
