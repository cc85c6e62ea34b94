"""BiT's and BiBERT's published implementations, number by number."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from bitbert.errors import UserError
from bitbert.model.attention import BinarySelfAttention
from bitbert.model.convert import from_reference, reference_key_map
from bitbert.model.distillation import direction_matching, hidden_state_mse, similarity, soft_cross_entropy
from tests.model.test_reference import part, relative_error


def read(folder: Path, method: str) -> tuple[dict[str, torch.Tensor], torch.nn.Module]:
    with safe_open(folder / f"{method}_ref_a.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        config = json.loads(file.metadata()["config"])
    return tensors, from_reference(part(tensors, "param."), method, config).eval()


def run(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> object:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return model(*(tensors[f"in.{name}"] for name in names), output_hidden_states=True)


def indexed(tensors: dict[str, torch.Tensor], prefix: str) -> list[torch.Tensor]:
    return [tensors[name] for name in sorted(tensors) if name.startswith(f"{prefix}.")]


def check_outputs(output, tensors: dict[str, torch.Tensor]) -> None:
    expected = indexed(tensors, "out.hidden_states")
    assert len(expected) == len(output.hidden_states)
    for found, state in zip(output.hidden_states, expected, strict=True):
        assert relative_error(found, state) < 1e-4
    assert relative_error(output.logits, tensors["out.logits"]) < 1e-4


def check_gradients(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    names, gradients = reference_key_map(model.config), part(tensors, "grad.")
    assert set(names.values()) == set(gradients)
    assert set(names) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if name in names:
            assert relative_error(parameter.grad, gradients[names[name]]) < 1e-3, name


def test_bit(vectors_folder: Path) -> None:
    tensors, model = read(vectors_folder, "bit")
    output = run(model, tensors)
    check_outputs(output, tensors)
    hidden = hidden_state_mse(output.hidden_states, indexed(tensors, "in.teacher_hidden_states"))
    soft = soft_cross_entropy(output.logits, tensors["in.teacher_logits"])
    assert hidden.item() == pytest.approx(tensors["out.loss_hidden"].item(), rel=1e-4)
    assert soft.item() == pytest.approx(tensors["out.loss_soft_ce"].item(), rel=1e-4)
    assert (hidden + soft).item() == pytest.approx(tensors["out.loss"].item(), rel=1e-4)
    (hidden + soft).backward()
    check_gradients(model, tensors)


def test_bibert(vectors_folder: Path) -> None:
    tensors, model = read(vectors_folder, "bibert")
    projections: dict[str, list[torch.Tensor]] = {"query": [], "key": [], "value": []}
    for module in model.modules():
        if isinstance(module, BinarySelfAttention):
            for name, outputs in projections.items():
                getattr(module, name).register_forward_hook(lambda *values, outputs=outputs: outputs.append(values[2]))
    output = run(model, tensors)
    check_outputs(output, tensors)

    losses = {}
    for name, outputs in projections.items():
        scores = [similarity(projection, model.config.num_attention_heads) for projection in outputs]
        for found, expected in zip(scores, indexed(tensors, f"out.{name}_scores"), strict=True):
            assert relative_error(found, expected) < 1e-4
        losses[f"dmd_{name}"] = direction_matching(scores, indexed(tensors, f"in.teacher_{name}_scores"))
    losses["dmd_hidden"] = direction_matching(output.hidden_states, indexed(tensors, "in.teacher_hidden_states"))
    losses["soft_ce"] = soft_cross_entropy(output.logits, tensors["in.teacher_logits"])
    losses["nll"] = torch.nn.functional.cross_entropy(output.logits, tensors["in.labels"])
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(tensors[f"out.loss_{name}"].item(), rel=1e-4), name
    total = sum(losses.values()) - 0.5 * losses["nll"]
    assert total.item() == pytest.approx(tensors["out.loss"].item(), rel=1e-4)
    total.backward()
    check_gradients(model, tensors)


def test_unknown_tensors_are_refused(vectors_folder: Path) -> None:
    with safe_open(vectors_folder / "bit_ref_a.safetensors", "pt") as file:
        parameters = {name[6:]: file.get_tensor(name) for name in file.keys() if name.startswith("param.")}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    with pytest.raises(UserError, match=r"bit state dict: missing none; not understood bert\.extra"):
        from_reference(parameters | {"bert.extra": torch.zeros(1)}, "bit", config)
    with pytest.raises(UserError, match="bibert state dict: missing none; not understood"):
        from_reference(parameters, "bibert", config)
