"""AdamW and its parameter groups."""

import torch
from torch import nn

from .config import OptimizerSection


def build_optimizer(model: nn.Module, config: OptimizerSection) -> torch.optim.AdamW:
    """AdamW over ``model`` in one fused pass; only matrices decay, not step sizes, shifts, norms and biases."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True
    )
