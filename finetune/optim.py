"""Optimizers, parameter groups, the learning rate as a closed form, and gradient clipping."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bitbert.model.linear import named_step_sizes

from .config import FinetuneConfig


class BertAdam(torch.optim.Optimizer):
    """Adam as BERT's code has it: no bias correction, weight decay beside the gradient.

        m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  w = w - lr (m / (sqrt(v) + eps) + decay w)

    Without the correction the first updates are up to (1 - b1) / sqrt(1 - b2) = 3.2 times as long as AdamW's.
    """

    def __init__(self, parameters: Any, lr: float, epsilon: float = 1e-6) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.999), "eps": epsilon, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                m, v = state["m"], state["v"]
                m.lerp_(parameter.grad, 1 - beta1)
                v.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                update = m / (v.sqrt() + group["eps"])
                parameter.sub_(update.add_(parameter, alpha=group["weight_decay"]), alpha=group["lr"])


def build_optimizer(model: nn.Module, config: FinetuneConfig) -> torch.optim.Optimizer:
    """Three groups: matrices (with weight decay), vectors, and the binarizers' step sizes at a rate of their own."""
    named, step_sizes = list(model.named_parameters()), named_step_sizes(model)
    vectors = [parameter for name, parameter in named if parameter.dim() < 2 and name not in step_sizes]
    step_rate = config.step_size_learning_rate or config.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": [parameter for _, parameter in named if parameter.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
        {"params": list(step_sizes.values()), "weight_decay": 0.0, "lr": step_rate},
    ]
    if config.optimizer == "bert_adam":
        optimizer: torch.optim.Optimizer = BertAdam(groups, config.learning_rate)
    else:
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to ``factor`` of its own."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def rate_factor(config: FinetuneConfig, step: int, total_steps: int) -> float:
    """Share of the full rate at update number ``step`` (0-based) of ``total_steps``, as a closed form."""
    warmup_steps = round(config.warmup_fraction * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.schedule == "constant":
        return 1.0
    return (total_steps - step) / (total_steps - warmup_steps)


def clip_gradients(model: nn.Module, config: FinetuneConfig) -> None:
    """Scale gradients down to the configured norm: of all together, or of each tensor by itself."""
    if not config.gradient_clipping:
        return
    if not config.clip_each_tensor:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clipping)
        return
    for parameter in model.parameters():
        torch.nn.utils.clip_grad_norm_(parameter, config.gradient_clipping)
