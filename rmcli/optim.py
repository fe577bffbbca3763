"""AdamW with masked updates, and the learning rate as a function of the step."""

import math

import torch
from torch import Tensor, nn

from rmcli.config import TrainSection


def build_optimizer(network: nn.Module, train: TrainSection) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices only (not on norms and biases)."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=train.lr, betas=(train.betas[0], train.betas[1]), fused=True)


def learning_rate(step: int, total_steps: int, train: TrainSection) -> float:
    """Rate of step 1..total: a linear rise over the warm-up, then a cosine that ends at 0 after the last step."""
    warmup_steps = math.ceil(train.warmup_ratio * total_steps)
    if step <= warmup_steps:
        return train.lr * step / warmup_steps
    share = (step - 1 - warmup_steps) / max(total_steps - warmup_steps, 1)
    return train.lr * 0.5 * (1 + math.cos(math.pi * share))


def clip_and_step(
    network: nn.Module, optimizer: torch.optim.AdamW, max_norm: float, loss: Tensor
) -> tuple[Tensor, Tensor]:
    """One update, left out on the device when the loss or the gradient norm is not finite.

    Returns the gradient norm before clipping, and a flag that is 1.0 when the update was left out. Neither waits for
    the device: fused AdamW reads the flag itself (`found_inf`).
    """
    norm = nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    skipped = (~(torch.isfinite(norm) & torch.isfinite(loss))).float()
    optimizer.found_inf = skipped  # pyright: ignore[reportAttributeAccessIssue] (read by the fused kernel)
    optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, skipped
