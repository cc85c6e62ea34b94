"""LAMB: Adam's direction, each tensor moved in proportion to its own norm, for batches of tens of thousands."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """Layer-wise adaptive moments (You et al., arXiv 1904.00962, algorithm 2), with decoupled weight decay.

        m = beta1 m + (1 - beta1) g           v = beta2 v + (1 - beta2) g^2
        u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay w
        w = w - lr r u                        r = |w| / |u|, or 1 where either norm is 0

    The trust ratio r is of one whole tensor, so every rank must hold whole tensors and their whole gradients:
    a ZeRO stage that cuts them would compute norms of pieces. A group with ``adapt=False`` has r = 1; step sizes,
    shifts, norms and biases belong there, since they begin at 0 or have one element.
    Norms stay on the device: there is no host synchronisation.

    Args:
        params: parameters or groups, as for every torch optimizer; groups may set ``weight_decay`` and ``adapt``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        adapt: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            # A float tensor, as torch's Adam has it, so that a checkpoint stores it like the moments.
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step = state["step"].double()  # stays a tensor: reading its value would make the host wait
        beta1, beta2 = group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        update = (mean / (1 - beta1**step)).div_(denominator)
        if group["weight_decay"]:
            update.add_(parameter, alpha=group["weight_decay"])
        if group["adapt"]:
            weight_norm, update_norm = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(update)
            ratio = torch.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
            update.mul_(ratio)
        parameter.add_(update, alpha=-group["lr"])
