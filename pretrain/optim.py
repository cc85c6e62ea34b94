"""AdamW or LAMB, and their parameter groups."""

from typing import Any

import torch
from torch import nn

from bitbert.errors import UserError
from bitbert.model.linear import named_step_sizes

from .config import OptimizerSection
from .lamb import Lamb

_RATE = "rate_share"


def build_optimizer(model: nn.Module, config: OptimizerSection) -> torch.optim.Optimizer:
    """The configured optimizer over ``model``: matrices decay (and adapt, under LAMB), everything else does not.

    The word table and the binarizers' step sizes are groups of their own where their rates are.

    Raises:
        UserError: one of these is to have a rate of its own, and ``model`` has none to train.
    """
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    apart = []
    for option, what, names in (
        ("word_table_rate", "word table", [name for name in learned if name.endswith("word_embeddings.weight")]),
        ("step_size_rate", "step sizes", [name for name in named_step_sizes(model) if name in learned]),
    ):
        share = getattr(config, option)
        if share == 1:
            continue
        if not names:
            raise UserError(f"optimizer.{option} is {share}, but this model trains no {what}; leave it out")
        apart.append(_group({name: learned.pop(name) for name in names}, config, share))
    matrices = {name: parameter for name, parameter in learned.items() if decays(name, parameter)}
    vectors = {name: parameter for name, parameter in learned.items() if name not in matrices}
    groups = [_group(matrices, config), _group(vectors, config), *apart]
    betas = (config.beta1, config.beta2)
    if config.name == "lamb":
        return Lamb(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)


def _group(parameters: dict[str, nn.Parameter], config: OptimizerSection, share: float = 1.0) -> dict[str, Any]:
    """Parameters of one kind: all of them matrices, or none."""
    is_matrices = all(decays(name, parameter) for name, parameter in parameters.items())
    weight_decay = config.weight_decay if is_matrices else 0.0
    return {"params": list(parameters.values()), "weight_decay": weight_decay, "adapt": is_matrices, _RATE: share}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's rate: ``rate`` times the group's share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_RATE]


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay pulls a parameter: latent matrices and tables do; scales, shifts, norms, biases do not."""
    return name.endswith("weight") and parameter.dim() >= 2
