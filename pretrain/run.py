"""What a run is made of, built and checked before the first step; and what it leaves behind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitbert.distributed import Topology, log
from bitbert.errors import UserError
from bitbert.files import publish_folder, write_json_atomically
from bitbert.model import BitBertConfig, BitBertForPreTraining
from bitbert.model.calibrate import calibrate_step_sizes
from bitbert.shards import ShardReader
from bitbert.tokenizer import Tokenizer, load_tokenizer
from bitbert.tracking import check_mlflow_uri

from .config import DataSection, PretrainConfig
from .curriculum import Curriculum
from .data import BatchMaker
from .engine import broadcast_parameters
from .phases import Phase, lay_out
from .run_folder import FINAL
from .student import build_student, load_step_sizes, save_step_sizes, student_config
from .teacher import Teacher, load_teacher

TRAINING_FILE = "training.json"


@dataclass(frozen=True)
class Run:
    """The checked ingredients of a run."""

    config: PretrainConfig
    tokenizer: Tokenizer
    phases: tuple[Phase, ...]
    teacher: Teacher
    student_config: BitBertConfig
    curriculum: Curriculum

    @property
    def folder(self) -> Path:
        return Path(self.config.output)

    @property
    def train(self) -> BatchMaker:
        """The training data of the first phase."""
        return self.phases[0].train

    @property
    def max_length(self) -> int:
        """Tokens of the longest rows that some phase trains on."""
        return max(int(phase.train.reader.manifest["max_length"]) for phase in self.phases)


def check_run(config: PretrainConfig) -> Run:
    """Open shards, tokenizer and teacher and hold them against each other.

    Raises:
        UserError: anything is missing, or does not fit the rest.
    """
    check_mlflow_uri(config.tracking.mlflow_uri)
    tokenizer = load_tokenizer(config.tokenizer)
    sections = config.resolved_phases()
    folders = dict.fromkeys(folder for section in sections for folder in (section.train, section.heldout))
    phases = lay_out(sections, {folder: open_shards(folder, tokenizer, config.data, config.seed) for folder in folders})
    teacher = load_teacher(config.teacher, config.loss, tokenizer, config.precision)
    student = student_config(config.model, teacher.config)
    for phase in phases:
        refuse_long_rows(phase.train, teacher)
        refuse_long_rows(phase.heldout, teacher)
        if config.loss.nsp and not phase.train.reader.manifest["nsp"]:
            raise UserError(
                f"shards {str(phase.train.reader.folder)!r} have no next-sentence labels (objective: mlm), and "
                f"loss.nsp is {config.loss.nsp:g}; set loss.nsp=0, or build them with objective: mlm_nsp"
            )
    return Run(config, tokenizer, phases, teacher, student, Curriculum(config.curriculum, student))


def refuse_long_rows(shards: BatchMaker, teacher: Teacher) -> None:
    """Raises:
    UserError: ``shards`` may have rows of more tokens than the teacher, and so the student, has positions.
    """
    longest, positions = int(shards.reader.manifest["max_length"]), teacher.config.max_position_embeddings
    if longest > positions:
        raise UserError(
            f"shards {str(shards.reader.folder)!r} have rows of {longest} tokens, the teacher has {positions} "
            "positions; build shorter shards"
        )


def open_shards(folder: str, tokenizer: Tokenizer, data: DataSection, seed: int) -> BatchMaker:
    """Masked batches of a shard folder.

    Raises:
        UserError: the shards are damaged, or were made with another tokenizer.
    """
    reader = ShardReader(folder, bad_shards=data.bad_shards)
    for message in reader.skipped:
        log(f"left out: {message}")
    found = reader.tokenizer["fingerprint"]
    if found != tokenizer.fingerprint:
        raise UserError(
            f"shards {folder!r} were made with a tokenizer with fingerprint {found[:12]}, "
            f"the config's has {tokenizer.fingerprint[:12]}; use the shards' tokenizer or build them again"
        )
    if reader.tokenizer != tokenizer.describe():
        raise UserError(
            f"shards {folder!r} say other things of their tokenizer than it says itself; their manifest is damaged, "
            "build them again"
        )
    return BatchMaker(reader, mask_probability=data.mask_probability, seed=seed)


def build_calibrated_student(run: Run, topology: Topology) -> BitBertForPreTraining:
    """The student at step 0, equal on all ranks, its step sizes calibrated once and saved in the run folder."""
    student = build_student(run.student_config, run.teacher, run.config.seed)
    run.curriculum.restore(student, 0)
    if not load_step_sizes(student, run.folder):
        rows = run.train.sample_rows(0, min(run.config.calibration_rows, len(run.train.reader)))
        calibrate_step_sizes(student, run.train.batch(rows).inputs())
        if topology.is_main:
            save_step_sizes(student, run.folder)
    return student


def share_student(student: BitBertForPreTraining, topology: Topology, device: torch.device) -> BitBertForPreTraining:
    """Move the student to ``device`` and make it equal to rank 0's."""
    torch.nn.Module.to(student, device).train()
    broadcast_parameters(student, topology)
    return student


def data_identity(run: Run) -> list[str]:
    """Hashes of the training shards of all phases: a run continues only on the data it began with."""
    readers = {id(phase.train): phase.train.reader for phase in run.phases}
    return [entry["sha256"] for reader in readers.values() for entry in reader.files]


def num_tokens(run: Run) -> int:
    """Text tokens that the whole run sees, special tokens included: its rows times the mean row of its shards."""
    tokens = 0.0
    for phase in run.phases:
        manifest = phase.train.reader.manifest
        tokens += (phase.end_step - phase.first_step) * phase.global_batch_size * manifest["tokens"] / manifest["rows"]
    return round(tokens)


def save_final_model(
    run: Run, student: BitBertForPreTraining, weights: dict[str, torch.Tensor], summary: dict[str, Any]
) -> Path:
    """Write ``final/``: the model in transformers' format with ``weights``, its tokenizer and how it was trained.

    The weights come from the last checkpoint: under ZeRO stage 3 the student itself holds a part of them only.
    """
    folder = run.folder / FINAL
    with publish_folder(folder, replace=True) as temporary:
        student.save_pretrained(temporary, state_dict=weights)
        run.tokenizer.save(temporary)
        record = {"max_length": run.max_length, "tokens": num_tokens(run), **summary}
        write_json_atomically(temporary / TRAINING_FILE, record)
    log(f"final model: {folder}")
    return folder
