"""The config of one pretraining run."""

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from bitbert.config import FrozenConfig, Precision
from bitbert.errors import UserError
from bitbert.presets import why_no_preset

from .schedule import learning_rate

HiddenUnits = Literal["absolute", "teacher_variance"]
RELATIONS = ("query", "key", "value")

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0)]
RunFolder = Annotated[str, Field(min_length=1, description="run folder")]
EvalEvery = Annotated[int, Field(ge=0, description="steps between evaluations; 0 = only before and after")]
CheckpointEvery = Annotated[int, Field(ge=0, description="steps between checkpoints; 0 = only the last")]


class DataSection(FrozenConfig):
    """Shard folders written by bitbert-data."""

    train: str
    heldout: str
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    bad_shards: Annotated[
        Literal["fail", "skip"], Field(description="a missing or damaged file stops the run, or its rows are left out")
    ] = "fail"


class ModelSection(FrozenConfig):
    """The student: a preset, and method fields that differ from it. Its shape is the teacher's."""

    method: Annotated[str, Field(description="a preset: docs/methods.md")] = "bipft-b"
    fields: Annotated[
        dict[str, Any],
        Field(description="method or dropout fields of BitBertConfig that differ from the preset"),
    ] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _method_is_known(self) -> Self:
        problem = why_no_preset(self.method)
        if problem is not None:
            raise ValueError(problem)
        return self


class LossSection(FrozenConfig):
    """Weights of the loss terms; the published ones by default (arXiv 2312.08937)."""

    mlm: NonNegative = 1.0
    nsp: NonNegative = 1.0
    hidden: Annotated[
        float, Field(ge=0, description="mean over embedding output and layers of the hidden states' MSE")
    ] = 1.0
    hidden_units: Annotated[
        HiddenUnits,
        Field(
            description="of the hidden states' squared differences: as published, or as shares of the variance of the "
            "teacher's state over its units, so that every layer and token counts alike"
        ),
    ] = "absolute"
    sentence: Annotated[
        float, Field(ge=0, description="1 - cosine of each text's mean state of the last layer with the teacher's")
    ] = 0.0
    nsp_distillation: Annotated[float, Field(ge=0, description="soft cross-entropy with the teacher's NSP logits")] = (
        1.0
    )
    mlm_distillation: Annotated[
        float, Field(ge=0, description="soft cross-entropy with the teacher's MLM logits at masked positions")
    ] = 0.0
    temperature: Annotated[float, Field(gt=0, description="of the MLM-logit distillation")] = 1.0
    query_relation: Annotated[float, Field(ge=0, description="KL of the queries' self-relations (MiniLMv2)")] = 0.0
    key_relation: NonNegative = 0.0
    value_relation: NonNegative = 0.0
    relation_layers: Annotated[
        tuple[int, ...], Field(min_length=1, description="layers of the relation terms; -1 is the last")
    ] = (-1,)
    relation_heads: Annotated[int | None, Field(ge=1, description="None: as many as the teacher's heads")] = None

    @property
    def relations(self) -> tuple[str, ...]:
        """The projections whose relations have a weight."""
        return tuple(kind for kind in RELATIONS if getattr(self, f"{kind}_relation"))

    @model_validator(mode="after")
    def _has_a_term(self) -> Self:
        of_states = (self.hidden, self.sentence, self.relations)
        if not any((self.mlm, self.nsp, self.nsp_distillation, self.mlm_distillation, *of_states)):
            raise ValueError("all weights are 0, so there is nothing to train; give a term one, e.g. mlm: 1")
        return self


class OptimizerSection(FrozenConfig):
    """AdamW or LAMB, and the learning rate over the steps (pretrain/schedule.py has the formulas)."""

    name: Annotated[Literal["adamw", "lamb"], Field(description="lamb for batches of tens of thousands")] = "adamw"
    schedule: Literal["linear", "cosine", "warmup-stable-decay"] = "linear"
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 5000
    decay_steps: Annotated[
        int | None, Field(ge=1, description="of warmup-stable-decay; None = a tenth of the steps")
    ] = None
    floor: Annotated[float, Field(ge=0, lt=1, description="what the rate falls to, as a share of its peak")] = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, description="on weight matrices only")] = 0.0
    word_table_rate: Annotated[
        float,
        Field(
            gt=0,
            description="the word table's learning rate as a share of that of the rest: Adam moves the row of a rare "
            "word far at each appearance, and flips bits that it cannot mend until the next",
        ),
    ] = 1.0
    step_size_rate: Annotated[
        float,
        Field(
            gt=0,
            description="the learning rate of the binarizers' step sizes as a share of that of the rest; BiT trains "
            "them at 1e-4",
        ),
    ] = 1.0
    gradient_clipping: Annotated[float, Field(ge=0, description="global norm; 0 = off, as published")] = 0.0

    def rate_at(self, step: int, total_steps: int) -> float:
        """Rate of the update number ``step`` (0-based) of a run of ``total_steps`` without phases."""
        return learning_rate(
            step,
            schedule=self.schedule,
            peak=self.learning_rate,
            warmup_steps=self.warmup_steps,
            total_steps=total_steps,
            decay_steps=self.decay_steps,
            floor=self.floor,
        )

    @model_validator(mode="after")
    def _decay_has_its_schedule(self) -> Self:
        if self.decay_steps is not None and self.schedule != "warmup-stable-decay":
            raise ValueError(
                f"decay_steps {self.decay_steps} belongs to schedule warmup-stable-decay, this one is {self.schedule}; "
                "remove it or change the schedule"
            )
        return self


class PhaseSection(FrozenConfig):
    """A stretch of the run; what it leaves out is the run's own."""

    steps: Positive
    train: Annotated[str | None, Field(description="shards of this phase, e.g. of longer rows")] = None
    heldout: str | None = None
    global_batch_size: Positive | None = None
    micro_batch_size: Positive | None = None
    learning_rate: Annotated[
        float | None, Field(gt=0, description="a peak of its own: the schedule begins anew with this phase")
    ] = None
    warmup_steps: Annotated[int | None, Field(ge=0, description="a warm-up of its own: likewise")] = None

    @property
    def restarts_schedule(self) -> bool:
        return self.learning_rate is not None or self.warmup_steps is not None


class CurriculumStage(FrozenConfig):
    """Activations of more than 1 bit until a step."""

    activation_bits: Literal[2, 4, 8]
    until: Annotated[int, Field(ge=1, description="updates made when the stage ends")]


class TrackingSection(FrozenConfig):
    """metrics.jsonl is always written; MLflow where a URI is given."""

    log_every: Positive = 10
    mlflow_uri: Annotated[str | None, Field(description="e.g. sqlite:///runs/mlflow.db")] = None
    experiment: str = "bitbert-pretrain"
    peak_tflops: Annotated[
        float | None, Field(gt=0, description="of one device in the precision that trains, e.g. 312 for A100 bf16: MFU")
    ] = None


class NonFiniteSection(FrozenConfig):
    """An update whose loss or gradient is NaN or infinite on any rank is skipped on all; then what?"""

    patience: Annotated[int, Field(ge=1, description="skipped updates in a row that end the run or roll it back")] = 3
    action: Annotated[
        Literal["stop", "rollback"],
        Field(description="rollback: to the newest checkpoint, and past all batches since then"),
    ] = "stop"
    max_rollbacks: Positive = 2


class PretrainConfig(FrozenConfig):
    """Everything that decides a run. Batch sizes are given once: accumulation follows from them."""

    output: RunFolder
    data: DataSection
    tokenizer: Annotated[str, Field(description="the tokenizer of the shards; shipped with the model")]
    teacher: Annotated[str, Field(description="full-precision BERT: folder, package://DIST/PATH or Hugging Face id")]
    model: ModelSection = ModelSection()
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    tracking: TrackingSection = TrackingSection()
    non_finite: NonFiniteSection = NonFiniteSection()
    curriculum: Annotated[
        tuple[CurriculumStage, ...],
        Field(description="gradual binarization: activations of more bits first, then of the method's own number"),
    ] = ()
    phases: Annotated[
        tuple[PhaseSection, ...], Field(description="one after the other, e.g. rows of 128 and then of 512 tokens")
    ] = ()
    steps: Annotated[int, Field(ge=1, description="with phases: their sum, which may be left out")] = 500_000
    global_batch_size: Annotated[int, Field(ge=1, description="sequences a step, over all ranks")] = 512
    micro_batch_size: Annotated[int, Field(ge=1, description="sequences a rank at a time")] = 64
    seed: Seed = 42
    eval_every: EvalEvery = 1000
    eval_rows: Positive = 1024
    checkpoint_every: CheckpointEvery = 1000
    keep_checkpoints: Positive = 2
    milestone_every: Annotated[
        int, Field(ge=0, description="checkpoints are also written at multiples of it, and kept for ever; 0 = none")
    ] = 0
    failed_saves: Annotated[
        int,
        Field(ge=1, description="checkpoints in a row that cannot be written before the run stops"),
    ] = 3
    zero_stage: Annotated[
        int, Field(ge=0, le=3, description="what DeepSpeed partitions: 1 moments, 2 and gradients, 3 and weights")
    ] = 0
    check_replicas_every: Annotated[
        int, Field(ge=0, description="steps between comparisons of the ranks' parameters; 0 = only before checkpoints")
    ] = 1000
    rank_timeout_s: Annotated[
        float,
        Field(gt=0, description="a rank not heard of for so long is lost; above the slowest step, evaluation or save"),
    ] = 600.0
    calibration_rows: Annotated[int, Field(ge=1, description="rows of the batch that initialises the step sizes")] = 64
    device: Literal["auto", "cpu"] = "auto"
    precision: Annotated[
        Precision,
        Field(description="of matrix products with floats; products of bits are exact integers in both"),
    ] = "fp32"

    @model_validator(mode="before")
    @classmethod
    def _steps_of_phases(cls, data: Any) -> Any:
        """``steps`` left out beside phases is their sum; anything wrong with them is reported by their own check."""
        if isinstance(data, dict) and data.get("phases") and "steps" not in data:
            try:
                return {**data, "steps": sum(int(phase["steps"]) for phase in data["phases"])}
            except (TypeError, KeyError, ValueError):
                return data
        return data

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        for phase in self.resolved_phases():
            if phase.global_batch_size % phase.micro_batch_size:
                raise ValueError(
                    f"global_batch_size {phase.global_batch_size} is not a multiple of micro_batch_size "
                    f"{phase.micro_batch_size}; change one of them"
                )
        return self

    @model_validator(mode="after")
    def _optimizer_fits_stage(self) -> Self:
        if self.optimizer.name == "lamb" and self.zero_stage:
            raise ValueError(
                f"zero_stage {self.zero_stage} cuts tensors into pieces, whose norms are not those that LAMB needs; "
                "set zero_stage=0, or optimizer.name=adamw"
            )
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.phases and self.steps != sum(phase.steps for phase in self.phases):
            raise ValueError(
                f"steps {self.steps} is not the sum of the phases' steps, "
                f"{sum(phase.steps for phase in self.phases)}; leave steps out"
            )
        ends = [stage.until for stage in self.curriculum]
        if ends != sorted(set(ends)) or any(end >= self.steps for end in ends):
            raise ValueError(
                f"curriculum stages end at {', '.join(map(str, ends))} of {self.steps} steps; each must end later than "
                "the one before, and the last before the run does"
            )
        for section in self.rate_sections():
            if section.warmup_steps > section.steps:
                raise ValueError(
                    f"optimizer.warmup_steps {section.warmup_steps} is above steps {section.steps}; lower it"
                )
            decay = self.optimizer.decay_steps or 0
            if section.warmup_steps + decay > section.steps:
                raise ValueError(
                    f"optimizer.warmup_steps {section.warmup_steps} and decay_steps {decay} are more than steps "
                    f"{section.steps}; lower one"
                )
        return self

    def resolved_phases(self) -> tuple["ResolvedPhase", ...]:
        """The run's phases with everything filled in; a run without phases is one."""
        return tuple(
            ResolvedPhase(
                phase.steps,
                phase.train or self.data.train,
                phase.heldout or self.data.heldout,
                phase.global_batch_size or self.global_batch_size,
                phase.micro_batch_size or self.micro_batch_size,
            )
            for phase in self.phases or (PhaseSection(steps=self.steps),)
        )

    def rate_sections(self) -> tuple["RateSection", ...]:
        """The stretches over which the learning rate is one schedule, in order."""
        sections: list[RateSection] = []
        first = 0
        for phase in self.phases or (PhaseSection(steps=self.steps),):
            if sections and not phase.restarts_schedule:
                sections[-1] = sections[-1]._replace(steps=sections[-1].steps + phase.steps)
            else:
                peak = phase.learning_rate or self.optimizer.learning_rate
                warmup = self.optimizer.warmup_steps if phase.warmup_steps is None else phase.warmup_steps
                sections.append(RateSection(first, phase.steps, peak, warmup))
            first += phase.steps
        return tuple(sections)

    def rate_at(self, step: int) -> float:
        """Learning rate of the run's update number ``step`` (0-based)."""
        section = [section for section in self.rate_sections() if section.first_step <= step][-1]
        own = {"learning_rate": section.learning_rate, "warmup_steps": section.warmup_steps}
        return self.optimizer.model_copy(update=own).rate_at(step - section.first_step, section.steps)

    def course(self, end: int) -> tuple[tuple[object, ...], ...]:
        """What phases and schedule say of the updates before number ``end``: which rows, and how each schedule went.

        Equal courses gave these updates the same rows and rates, however the phases are cut and whatever comes after.
        """
        rows: list[tuple[object, int]] = []
        first = 0
        for phase in self.resolved_phases():
            steps = min(phase.steps, end - first)
            source = (phase.train, phase.heldout, phase.global_batch_size)
            if steps > 0 and rows and rows[-1][0] == source:
                rows[-1] = (source, rows[-1][1] + steps)
            elif steps > 0:
                rows.append((source, steps))
            first += phase.steps
        # Rates fall once they fall: sections of one peak and warm-up that agree at their last update agree before it.
        rates = (
            (
                section.first_step,
                section.learning_rate,
                section.warmup_steps,
                self.rate_at(min(end, section.first_step + section.steps) - 1),
            )
            for section in self.rate_sections()
            if section.first_step < end
        )
        return (*rows, *rates)


class ResolvedPhase(NamedTuple):
    """A phase's steps, shard folders and batch sizes."""

    steps: int
    train: str
    heldout: str
    global_batch_size: int
    micro_batch_size: int

    def accumulation_steps(self, num_ranks: int) -> int:
        """Micro-batches a rank and step.

        Raises:
            UserError: the global batch does not divide over the ranks.
        """
        per_pass = self.micro_batch_size * num_ranks
        if self.global_batch_size % per_pass:
            raise UserError(
                f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size} x {num_ranks} ranks = {per_pass}; "
                "change micro_batch_size or the number of ranks"
            )
        return self.global_batch_size // per_pass


class RateSection(NamedTuple):
    """Steps ``first_step`` to ``first_step + steps``, under one learning-rate schedule."""

    first_step: int
    steps: int
    learning_rate: float
    warmup_steps: int
