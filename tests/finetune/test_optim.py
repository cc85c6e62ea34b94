"""The learning rate's closed form, the optimizers' formulas, and the recipe of one task."""

import pytest
import torch

from bitbert.config import load_config
from bitbert.finetune.config import FinetuneConfig
from bitbert.finetune.optim import BertAdam, build_optimizer, clip_gradients, rate_factor, set_rate
from tests.conftest import REPOSITORY, tiny_model


@pytest.mark.parametrize(
    ("fields", "factors"),
    [
        ({}, [1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "warmup_fraction": 0.5}, [0.5, 1, 1, 0.5]),
        ({"warmup_fraction": 0.5}, [0.5, 1, 1, 1]),
    ],
)
def test_rate_is_its_closed_form(fields: dict, factors: list[float]) -> None:
    assert [rate_factor(FinetuneConfig(**fields), step, 4) for step in range(4)] == pytest.approx(factors)


def test_bert_adam_is_adam_without_bias_correction() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = BertAdam([{"params": [weight], "weight_decay": 0.01}], lr=0.1)
    m = v = 0.0
    expected = 2.0
    for gradient in (0.5, -0.25):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected -= 0.1 * (m / (v**0.5 + 1e-6) + 0.01 * expected)
        assert weight.item() == pytest.approx(expected, rel=1e-5)


def test_groups() -> None:
    model = tiny_model("bipft-b", "BitBertForSequenceClassification", vocab_size=100, num_labels=2)
    recipe = FinetuneConfig(learning_rate=1e-3, step_size_learning_rate=1e-4, weight_decay=0.01)
    optimizer = build_optimizer(model, recipe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(each)]: group for group in optimizer.param_groups for each in group["params"]}
    assert set(found) == set(names.values())
    alpha, bias, weight = (
        found[f"bitbert.pooler.dense.{name}"] for name in ("input_binarizer.alpha", "bias", "weight")
    )
    assert [(group["lr"], group["weight_decay"]) for group in (alpha, bias, weight)] == [
        (1e-4, 0.0),
        (1e-3, 0.0),
        (1e-3, 0.01),
    ]
    set_rate(optimizer, 0.5)
    assert (alpha["lr"], weight["lr"]) == (5e-5, 5e-4)


@pytest.mark.parametrize(("each", "norms"), [(False, [1 / 5**0.5, 2 / 5**0.5]), (True, [1.0, 1.0])])
def test_clipping(each: bool, norms: list[float]) -> None:
    module = torch.nn.Linear(1, 1)
    module.weight.grad, module.bias.grad = torch.full((1, 1), 2.0), torch.full((1,), 4.0)
    clip_gradients(module, FinetuneConfig(gradient_clipping=1.0, clip_each_tensor=each))
    assert [module.weight.grad.item(), module.bias.grad.item()] == pytest.approx(norms, rel=1e-4)


def test_a_task_changes_the_recipe() -> None:
    recipe = FinetuneConfig(learning_rate=1e-4, tasks={"cola": {"epochs": 50, "max_length": 64}})
    assert recipe.for_task("cola", 7).epochs == 50
    assert recipe.for_task("cola", 7).max_length == 64
    assert (recipe.for_task("rte", 7).epochs, recipe.for_task("rte", 7).max_length) == (7, 128)


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        ("bipft", "mnli", (2e-5, 32, 6, 128)),
        ("bibert", "rte", (1e-5, 16, 20, 128)),
        ("bibert", "cola", (1e-4, 16, 50, 64)),
        ("bit", "qqp", (2e-4, 32, 6, 128)),
        ("bit", "sst2", (1e-4, 8, 10, 64)),
    ],
)
def test_published_recipes(name: str, task: str, expected: tuple) -> None:
    recipe = load_config(FinetuneConfig, REPOSITORY / "configs" / "finetune" / f"{name}.yaml")
    found = recipe.for_task(task, 6)
    assert (found.learning_rate, found.batch_size, found.epochs, found.max_length) == expected
