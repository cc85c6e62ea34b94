"""AdamW or LAMB, and their parameter groups."""

import torch
from torch import nn

from bitbert.errors import UserError

from .config import OptimizerSection
from .lamb import Lamb

_RATE = "rate_share"


def build_optimizer(model: nn.Module, config: OptimizerSection) -> torch.optim.Optimizer:
    """The configured optimizer over ``model``: matrices decay (and adapt, under LAMB), everything else does not.

    The word table is a group of its own where its rate is.

    Raises:
        UserError: the word table is to have a rate of its own, and ``model`` has none to train.
    """
    learned = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    tables = [parameter for name, parameter in learned if config.word_table_rate != 1 and _is_word_table(name)]
    if config.word_table_rate != 1 and not tables:
        raise UserError(
            f"optimizer.word_table_rate is {config.word_table_rate}, but this model trains no word table; leave it out"
        )
    matrices = [
        parameter
        for name, parameter in learned
        if decays(name, parameter) and not any(parameter is table for table in tables)
    ]
    others = [parameter for name, parameter in learned if not decays(name, parameter)]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if tables:
        groups.append({"params": tables, "weight_decay": config.weight_decay, _RATE: config.word_table_rate})
    betas = (config.beta1, config.beta2)
    if config.name == "lamb":
        groups[1]["adapt"] = False
        return Lamb(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's rate: ``rate`` times the group's share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(_RATE, 1.0)


def _is_word_table(name: str) -> bool:
    return name.endswith("word_embeddings.weight")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay pulls a parameter: latent matrices and tables do; scales, shifts, norms, biases do not."""
    return name.endswith("weight") and parameter.dim() >= 2
