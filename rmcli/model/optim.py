"""AdamW with masked updates, and the learning rate as a function of the step."""

import math

import torch
from torch import Tensor, nn

from rmcli.config.sections import TrainSection
from rmcli.model.compact_adamw import CompactAdamW
from rmcli.parallel.parts import whole

Optimizer = torch.optim.AdamW | CompactAdamW


def build_optimizer(network: nn.Module, head: nn.Module, train: TrainSection) -> Optimizer:
    """Fused AdamW; weight decay on matrices only (not on norms and biases), the head at its own rate.

    Each group keeps its peak rate under `peak_lr`. With `master_weights = "split"` every weight but the head's
    becomes bfloat16 in place; `restore_float32` undoes it.
    """
    of_head = set(head.parameters())
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    body = [parameter for parameter in parameters if parameter not in of_head]
    head_lr = train.lr if train.head_lr is None else train.head_lr
    groups = [
        {"params": [p for p in body if p.ndim >= 2], "weight_decay": train.weight_decay, "peak_lr": train.lr},
        {"params": [p for p in body if p.ndim < 2], "weight_decay": 0.0, "peak_lr": train.lr},
        {"params": list(head.parameters()), "weight_decay": train.weight_decay, "peak_lr": head_lr},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (train.betas[0], train.betas[1])
    if train.master_weights == "float32" and train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.lr, betas=betas, fused=True)
    for group in groups:
        if group["params"][0] not in of_head:  # scores, head and loss are float32 in everything
            group["split"] = train.master_weights == "split"
            group["state_bits"] = 8 if train.optimizer == "adamw_8bit" else 32
    return CompactAdamW(groups, lr=train.lr, betas=betas, compiled=train.kernels == "compile")


def expect_gradients(optimizer: Optimizer, several: bool) -> None:
    """Say before a step whether a weight gets more than one gradient in it: sums of them are float32 always.

    One forward that uses a weight once leaves bfloat16 gradients to bfloat16 weights; torch rounds them in any case.
    """
    if isinstance(optimizer, CompactAdamW):
        optimizer.keep_float32_gradients(several)


def restore_float32(optimizer: Optimizer) -> None:
    """After the last step: bfloat16 weights become the float32 masters they stand for, in place."""
    if isinstance(optimizer, CompactAdamW):
        optimizer.restore_masters()


def schedule(step: int, total_steps: int, warmup_ratio: float, min_lr_ratio: float = 0.0) -> float:
    """Share of the peak rate in step 1..total: a linear rise over the warm-up, then a cosine to `min_lr_ratio`."""
    warmup_steps = math.ceil(warmup_ratio * total_steps)
    if step <= warmup_steps:
        return step / warmup_steps
    done = (step - 1 - warmup_steps) / max(total_steps - warmup_steps, 1)
    return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Every group at this share of its peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def clip_and_step(network: nn.Module, optimizer: Optimizer, max_norm: float, loss: Tensor) -> tuple[Tensor, Tensor]:
    """One update, left out on the device when the loss or the gradient norm is not finite.

    Returns the gradient norm before clipping, and a flag that is 1.0 when the update was left out. Neither waits for
    the device: fused AdamW reads the flag itself (`found_inf`).
    """
    clip = optimizer.clip if isinstance(optimizer, CompactAdamW) else nn.utils.clip_grad_norm_
    norm = whole(clip(network.parameters(), max_norm))
    skipped = (~(torch.isfinite(norm) & torch.isfinite(loss))).float()
    optimizer.found_inf = skipped  # pyright: ignore[reportAttributeAccessIssue] (read by the fused kernel)
    optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, skipped
