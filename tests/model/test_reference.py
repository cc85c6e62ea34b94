"""BiPFT's published implementation, number by number."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from bitbert.errors import UserError
from bitbert.model import convert
from bitbert.model.convert import from_reference
from bitbert.pretrain.objective import hidden_state_loss, soft_cross_entropy

DEAD_BIASES = ("key_residual.bias", "key_binary.bias")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.detach().flatten() - expected.flatten()).norm() / expected.norm()).item()


@pytest.fixture
def reference(vectors_folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(vectors_folder / "bipft_ref_a.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return tensors, json.loads(file.metadata()["config"])


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def test_forward_losses_and_gradients(reference: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> None:
    tensors, config = reference
    model = from_reference(part(tensors, "param."), "bipft", config).eval()
    assert model.config.method == "bipft-b"
    inputs = part(tensors, "in.")
    teacher_states = tuple(inputs[f"teacher_hidden_states.{index}"] for index in range(3))
    output = model(
        inputs["input_ids"],
        inputs["attention_mask"],
        inputs["token_type_ids"],
        labels=inputs["labels"],
        next_sentence_label=inputs["next_sentence_label"],
        output_hidden_states=True,
    )
    for index, state in enumerate(output.hidden_states):
        assert relative_error(state, tensors[f"out.hidden_states.{index}"]) < 1e-4
    assert relative_error(output.prediction_logits, tensors["out.prediction_logits"]) < 1e-4
    assert relative_error(output.seq_relationship_logits, tensors["out.nsp_logits"]) < 1e-4

    everywhere = torch.ones_like(inputs["attention_mask"])  # the published loss counts padding
    hidden = hidden_state_loss(output.hidden_states, teacher_states, everywhere, everywhere.sum().item())
    soft_nsp = soft_cross_entropy(output.seq_relationship_logits, inputs["teacher_nsp_logits"]) / (2 * len(everywhere))
    for found, name in ((output.loss, "loss"), (hidden, "loss_hidden"), (soft_nsp, "loss_nsp_soft")):
        assert found.item() == pytest.approx(tensors[f"out.{name}"].item(), rel=1e-4)

    (output.loss + hidden + soft_nsp).backward()
    names = published_names(model)
    gradients = part(tensors, "grad.")
    assert set(names.values()) == set(gradients)
    for name, parameter in model.named_parameters():
        found, expected = parameter.grad, gradients[names[name]]
        if name.endswith(DEAD_BIASES):
            assert found.abs().max() < 1e-5
            assert expected.abs().max() < 1e-5
        else:
            assert relative_error(found, expected) < 1e-3, name


def published_names(model: torch.nn.Module) -> dict[str, str]:
    """Our parameter names -> the published ones."""
    mapping = convert.reference_key_map(model.config)
    assert set(mapping) == {name for name, _ in model.named_parameters()}
    return mapping


def test_without_estimators_it_is_bipft_a(reference: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> None:
    tensors, config = reference
    kept = {
        name: tensor
        for name, tensor in part(tensors, "param.").items()
        if not any(f".{key}." in name for key in ("q_p", "k_p", "q_m", "k_m", "v_p"))
    }
    model = from_reference(kept, "bipft", config)
    assert (model.config.method, model.config.residual_rank) == ("bipft-a", 0)


def test_missing_unknown_and_misshaped_tensors_are_refused(
    reference: tuple[dict[str, torch.Tensor], dict[str, Any]],
) -> None:
    tensors, config = reference
    parameters = part(tensors, "param.")
    without = {name: tensor for name, tensor in parameters.items() if name != "bert.pooler.dense.bias"}
    with pytest.raises(UserError, match=r"missing bert\.pooler\.dense\.bias"):
        from_reference(without, "bipft", config)
    with pytest.raises(UserError, match=r"not understood bert\.extra"):
        from_reference(parameters | {"bert.extra": torch.zeros(1)}, "bipft", config)
    with pytest.raises(UserError, match="has shape"):
        from_reference(parameters | {"bert.pooler.dense.bias": torch.zeros(3)}, "bipft", config)
    with pytest.raises(UserError, match="wanted 'bipft', 'bit' or 'bibert'"):
        from_reference(parameters, "no-such-method", config)
