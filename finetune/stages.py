"""A method's recipe as stages: which model starts each, which one teaches it, and what is trained how."""

import re
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from bitbert.config import FrozenConfig
from bitbert.presets import PRESETS

from .config import FinetuneConfig
from .distill import DistillationConfig

GIVEN = "model"
"""The ``start`` of a stage that begins with the model on the command line."""
FULL_PRECISION = "full-precision"


class StageConfig(FrozenConfig):
    """One finetuning, from a full-precision BERT, a BitBERT, or an earlier stage."""

    start: Annotated[str, Field(description="'model', the one on the command line, or an earlier stage")] = GIVEN
    method: Annotated[
        str | None,
        Field(
            description="preset that binarizes a full-precision start; 'full-precision' leaves it so; 'binarybert' "
            "splits the weights of a ternarybert stage; None = a binary start as it is"
        ),
    ] = None
    fields: Annotated[
        dict[str, Any], Field(description="method fields that differ from the preset, e.g. activation_bits")
    ] = Field(default_factory=dict)
    half_width: Annotated[bool, Field(description="keep half of the heads and inner units (BinaryBERT)")] = False
    teacher: Annotated[str | None, Field(description="an earlier stage; None = finetune on the labels alone")] = None
    distillation: DistillationConfig = DistillationConfig()
    recipe: Annotated[FinetuneConfig | None, Field(description="None = the recipe of the method")] = None


class MethodConfig(FrozenConfig):
    """A method from start to end, e.g. configs/finetune/methods/bit.yaml; stages by name, in their order."""

    stages: Annotated[dict[str, StageConfig], Field(min_length=1)]
    recipe: Annotated[FinetuneConfig, Field(description="of stages without their own")] = FinetuneConfig()

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        earlier: list[str] = []
        for name, stage in self.stages.items():
            if name == GIVEN or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
                raise ValueError(f"stage {name!r}: wanted a name of small letters and digits, other than {GIVEN!r}")
            for role, found, known in (
                ("start", stage.start, [GIVEN, *earlier]),
                ("teacher", stage.teacher, [*earlier, None]),
                ("method", stage.method, [*PRESETS, FULL_PRECISION, None]),
            ):
                if found not in known:
                    names = ", ".join(name for name in known if name is not None) or "none"
                    raise ValueError(f"stage {name!r}: {role} {found!r} is not known; there are: {names}")
            earlier.append(name)
        return self

    @model_validator(mode="after")
    def _teachers_see_pairs_as_students_do(self) -> Self:
        for name, stage in self.stages.items():
            if stage.teacher is None:
                continue
            ours, theirs = self.recipe_of(name), self.recipe_of(stage.teacher)
            for task in ("", *ours.tasks, *theirs.tasks):
                pairs = [recipe.for_task(task, 1).pairs for recipe in (ours, theirs)]
                if pairs[0] != pairs[1]:
                    raise ValueError(
                        f"stage {name!r}: pairs {pairs[0]} with a teacher (stage {stage.teacher!r}) of "
                        f"pairs {pairs[1]}; give both the same, else their states are of other texts"
                    )
        return self

    def recipe_of(self, name: str) -> FinetuneConfig:
        """The recipe that stage ``name`` is trained with."""
        return self.stages[name].recipe or self.recipe
