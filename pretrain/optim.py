"""AdamW or LAMB, and their parameter groups."""

from typing import Any

import torch
from torch import nn

from bitbert.errors import UserError

from .config import OptimizerSection
from .lamb import Lamb

_RATE = "rate_share"
_WHAT = {"word_table_rate": "word table", "step_size_rate": "step sizes"}
_VECTORS = {"weight_decay": 0.0, "adapt": False}


def build_optimizer(model: nn.Module, config: OptimizerSection) -> torch.optim.Optimizer:
    """The configured optimizer over ``model``: matrices decay (and adapt, under LAMB), everything else does not.

    The word table and the binarizers' step sizes are groups of their own where their rates are.

    Raises:
        UserError: one of these is to have a rate of its own, and ``model`` has none to train.
    """
    learned = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    own = {
        "word_table_rate": [parameter for name, parameter in learned if name.endswith("word_embeddings.weight")],
        "step_size_rate": [parameter for name, parameter in learned if name.endswith(".alpha")],
    }
    shares = {option: getattr(config, option) for option in own}
    for option, share in shares.items():
        if share != 1 and not own[option]:
            raise UserError(f"optimizer.{option} is {share}, but this model trains no {_WHAT[option]}; leave it out")
    apart = {id(parameter) for option, share in shares.items() if share != 1 for parameter in own[option]}
    rest = [(name, parameter) for name, parameter in learned if id(parameter) not in apart]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for name, parameter in rest if decays(name, parameter)]},
        {"params": [parameter for name, parameter in rest if not decays(name, parameter)], **_VECTORS},
    ]
    if shares["word_table_rate"] != 1:
        groups.append({"params": own["word_table_rate"], _RATE: shares["word_table_rate"]})
    if shares["step_size_rate"] != 1:
        groups.append({"params": own["step_size_rate"], _RATE: shares["step_size_rate"], **_VECTORS})
    for group in groups:
        group.setdefault("weight_decay", config.weight_decay)
    betas = (config.beta1, config.beta2)
    if config.name == "lamb":
        return Lamb(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's rate: ``rate`` times the group's share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(_RATE, 1.0)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay pulls a parameter: latent matrices and tables do; scales, shifts, norms, biases do not."""
    return name.endswith("weight") and parameter.dim() >= 2
