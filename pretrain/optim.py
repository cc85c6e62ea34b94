"""AdamW or LAMB, and their parameter groups."""

import torch
from torch import nn

from .config import OptimizerSection
from .lamb import Lamb


def build_optimizer(model: nn.Module, config: OptimizerSection) -> torch.optim.Optimizer:
    """The configured optimizer over ``model``: matrices decay (and adapt, under LAMB), everything else does not."""
    learned = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in learned if decays(name, parameter)]
    others = [parameter for name, parameter in learned if not decays(name, parameter)]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    if config.name == "lamb":
        groups[1]["adapt"] = False
        return Lamb(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay pulls a parameter: latent matrices and tables do; scales, shifts, norms, biases do not."""
    return name.endswith("weight") and parameter.dim() >= 2
