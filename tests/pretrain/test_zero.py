"""ZeRO stages 0 to 3: one checkpoint format, exact on the same ranks and stage, the same training on others."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

import bitbert.model  # noqa: F401 (registers the model type)
from bitbert.config import load_config
from bitbert.errors import UserError
from bitbert.pretrain.config import PretrainConfig
from tests.pretrain import forked
from tests.pretrain.settings import SMOKE
from tests.pretrain.test_faults import plant_nan

RATES = ("optimizer.word_table_rate=0.5", "optimizer.step_size_rate=0.5")  # a group each; rank 1 holds no step size
FIXED = "model.fields={input_shift: false}"  # some parameters are not trained
SHORT = ("steps=4", "checkpoint_every=2", "eval_every=2", FIXED, *RATES)
FIXED_STEPS = ("model.method=bibert", "optimizer.step_size_rate=1")


def partition_all(rank: int) -> None:
    """Stage 3 keeps tensors whole that are as small as the tiny model's; here it must not."""
    from bitbert.pretrain import engine

    derive = engine.deepspeed_config

    def derived(*given: object) -> dict[str, object]:
        config = derive(*given)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    engine.deepspeed_config = derived


def partition_and_measure(rank: int) -> None:
    """As :func:`partition_all`; and stage 3 says before each update how much it holds."""
    from bitbert.pretrain.zero import TrainingTensors

    partition_all(rank)
    squares = TrainingTensors.gradient_squares

    def measured(tensors: TrainingTensors) -> torch.Tensor:
        zero, parameters = tensors._zero, [each for each in tensors._parameters.values() if each.requires_grad]
        if hasattr(zero, "grad_partitions_flat_buffer"):
            held = [parameter.ds_tensor for parameter in parameters]
            held += [*zero.fp32_partitioned_groups_flat, zero.grad_partitions_flat_buffer]
            held += [value for state in tensors._optimizer.state.values() for value in state.values()]
            storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in held}
            print(f"bytes a parameter {sum(storages.values()) / sum(each.ds_numel for each in parameters):.2f}")
        return squares(tensors)

    TrainingTensors.gradient_squares = measured


Train = Callable[..., str]


@pytest.fixture(scope="module")
def train(tiny_shards: Path, tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """train(output, stage, ranks, *overrides): run to the end; rank 0's log."""
    torch.set_num_threads(1)
    forked.warm_up()

    def run(
        output: Path, stage: int, ranks: int, *overrides: str, prepare: Callable[[int], object] = partition_all
    ) -> str:
        logs = tmp_path_factory.mktemp("logs")
        settings = [*forked.tiny_settings(tiny_shards, tiny_teacher, output), *SHORT, f"zero_stage={stage}"]
        if ranks == 1:
            children = [forked.start([*settings, *overrides], logs / "rank-0.log", prepare=lambda: prepare(0))]
        else:
            children = forked.start_ranks([*settings, *overrides], logs, ranks, prepare=prepare)
        codes = [child.wait(240) for child in children]
        assert not any(codes), children[0].text()
        return children[0].text()

    return run


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """whole(stage): the folder of a run of two ranks that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")

    def of(stage: int) -> Path:
        if not (folder / f"stage-{stage}").exists():
            text = train(folder / f"stage-{stage}", stage, 2, prepare=partition_and_measure)
            (folder / f"stage-{stage}" / "log").write_text(text, encoding="utf-8")
        return folder / f"stage-{stage}"

    return of


def cut(run: Path, copy: Path) -> Path:
    """What a kill right after the checkpoint of step 2 leaves."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "final")
    shutil.rmtree(copy / "checkpoints" / "step-00000004")
    (copy / "checkpoints" / "latest").write_text("step-00000002\n", encoding="utf-8")
    return copy


def tensors(run: Path) -> dict[str, torch.Tensor]:
    last = run / "checkpoints" / "step-00000004"
    return load_file(last / "model.safetensors") | load_file(last / "optimizer.safetensors")


def assert_close(run: Path, other: Path) -> None:
    """As two runs whose sums have another order; measured 2e-5 for weights, 1e-8 for moments after six steps."""
    found, expected = tensors(run), tensors(other)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        tolerance = 1e-6 if "|" in name else 2e-4
        assert torch.allclose(found[name].double(), tensor.double(), rtol=0, atol=tolerance), name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_resumed_on_the_same_ranks_and_stage_the_bits_are_the_same(
    train: Train, whole: Callable[[int], Path], tmp_path: Path, stage: int
) -> None:
    run = cut(whole(stage), tmp_path / "run")
    assert "resumed from step-00000002" in train(run, stage, 2)
    found, expected = tensors(run), tensors(whole(stage))
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert_close(run, whole(0))


@pytest.mark.parametrize(("stage", "next_stage", "ranks"), [(0, 3, 1), (3, 1, 4), (2, 0, 4)])
def test_resumed_on_other_ranks_and_stages_training_goes_on(
    train: Train, whole: Callable[[int], Path], tmp_path: Path, stage: int, next_stage: int, ranks: int
) -> None:
    run = cut(whole(stage), tmp_path / "run")
    assert "resumed from step-00000002" in train(run, next_stage, ranks)
    assert_close(run, whole(0))


def test_the_final_model_of_stage_3_is_whole(whole: Callable[[int], Path]) -> None:
    model = AutoModelForPreTraining.from_pretrained(whole(3) / "final")
    saved = load_file(whole(3) / "checkpoints" / "step-00000004" / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, saved[name]), name
    assert sorted(load_file(whole(0) / "final" / "model.safetensors")) == sorted(
        load_file(whole(3) / "final" / "model.safetensors")
    )


def test_rollback_under_stage_3_is_that_of_stage_0(train: Train, tmp_path: Path) -> None:
    """Weights and moments are put back into the partitions."""

    def prepare(rank: int) -> None:
        partition_all(rank)
        plant_nan({2, 3}, rank=1)(rank)

    for stage in (0, 3):
        rollback = ("non_finite.patience=2", "non_finite.action=rollback")
        text = train(tmp_path / str(stage), stage, 2, *FIXED_STEPS, *rollback, prepare=prepare)
        assert "rolled back to step 2, past the 2 batches since then" in text
    assert_close(tmp_path / "3", tmp_path / "0")


def test_the_update_holds_what_is_computed(whole: Callable[[int], Path]) -> None:
    """Measured on two ranks under stage 3: weights, their copy, gradients and moments of all that is trained."""
    text = (whole(3) / "log").read_text(encoding="utf-8")
    assert float(text.split("bytes a parameter ")[-1].split()[0]) == pytest.approx(10, abs=0.05)


def test_lamb_needs_whole_tensors(tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    settings = [*forked.tiny_settings(tiny_shards, tiny_teacher, tmp_path), "optimizer.name=lamb", "zero_stage=2"]
    with pytest.raises((UserError, ValidationError), match="whose norms are not those that LAMB needs"):
        load_config(PretrainConfig, SMOKE, settings)
