"""AdamW in less memory: bfloat16 weights with exact float32 masters (16 + 16 bits), and states of 8 bits.

A master is a bfloat16 weight, which the model computes with, and 16 low bits beside it:

    bits(master) = (bits(weight) << 16) + low          low: int16, -32768 to 32767

The weight is the master rounded to nearest as a cast would (exact ties go away from zero; a cast takes the even one),
and the sum gives the master back bit by bit. The update runs in float32 on the master, through the kernel that
torch.optim.AdamW(fused=True) runs, so a run is bitwise the one with float32 masters and the same gradients.

8-bit states are those of arXiv 2110.02861: blocks of 256 values, each with its largest magnitude in float32, and one
byte per value for its place in a dynamic map. Like bitsandbytes and torchao, weights of fewer than 4096 numbers keep
float32 states. Their optimizers are not used: neither holds split masters or leaves a step out on the device. Unlike
theirs a block lies within a row of the weight (the row's last may be shorter), and a scale tensor has the weight's
axes but its last, (rows, blocks) or (experts, rows, blocks): a weight cut along its first axis over processes keeps
its states, bitwise where each part is a multiple of 64 numbers. A cut through a vector would cut blocks, so vectors
keep float32 states, too.

Axes: R rows of one piece of a weight, C numbers of a row, B blocks of a row.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim.adamw import adamw

from rmcli.parallel.parts import group_of_parts, own_part, zeros_as

BLOCK = 256  # values that share a scale
SMALLEST = 4096  # numbers of a whole weight, however cut, whose states are worth 8 bits
PIECE = 2**24  # numbers updated at a time, about: temporary float32 memory stays below a gigabyte
# Rows updated at a time are a multiple: the kernel must see the same vectors, of up to 64 numbers, as in one go.
ROWS = 64


def round_bits(master: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 numbers as (bfloat16 weight, int16 low bits); `join_bits` gives back every bit, NaNs included."""
    high, low = _split(master.view(torch.int32))
    return high.to(torch.int16).view(torch.bfloat16), low.to(torch.int16)


def join_bits(weight: Tensor, low: Tensor) -> Tensor:
    """The float32 numbers of `round_bits`."""
    return _join(weight.view(torch.int16), low).view(torch.float32)


# The passes over all weights around the update, which may be compiled into one kernel each. Those of split weights
# are integers alone: compiling them changes no bit. Those of 8-bit states divide.


def _split(bits_RC: Tensor) -> tuple[Tensor, Tensor]:
    """int32 bits of masters as int32 (upper half rounded, rest)."""
    high_RC = ((bits_RC >> 15) + 1) >> 1  # (bits + 2**15) >> 16 without its overflow
    return high_RC, bits_RC - (high_RC << 16)


def _join(weight_bits_RC: Tensor, low_RC: Tensor) -> Tensor:
    """Two int16 halves as int32 bits of masters."""
    return (weight_bits_RC.to(torch.int32) << 16) + low_RC


def _split_into(bits_RC: Tensor, weight_bits_RC: Tensor, low_RC: Tensor) -> None:
    high_RC, rest_RC = _split(bits_RC)
    weight_bits_RC.copy_(high_RC)
    low_RC.copy_(rest_RC)


def has_8_bits(shape: Sequence[int], state_bits: int) -> bool:
    """Whether a weight of this shape gets 8-bit states where `state_bits` asks for them."""
    return state_bits == 8 and len(shape) >= 2 and prod(shape) >= SMALLEST


def scale_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Of the scales of one 8-bit state: the blocks of a row in place of its numbers."""
    return (*shape[:-1], -(-shape[-1] // BLOCK))


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True, fullgraph=True)


class CompactAdamW(torch.optim.Optimizer):
    """AdamW over groups that may have `split` (16 + 16 bit weights) and `state_bits` (32 or 8).

    It takes split weights over as float32 and makes them bfloat16 in place. Steps are masked on the device by
    `found_inf` (1.0 leaves weights and states bitwise as they were) and gradients are scaled by `gradient_factor`.
    `compiled` makes one kernel of each pass around the update; an 8-bit code may then differ between two values that
    are equally near.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        compiled: bool = False,
    ) -> None:
        self._made: Callable[[Callable[..., Any]], Callable[..., Any]] = (
            _compiled if compiled else lambda plain: plain
        )
        self.found_inf: Tensor | None = None
        self.gradient_factor: Tensor | None = None
        super().__init__(
            groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "split": False, "state_bits": 32}
        )
        for group in self.param_groups:
            for parameter in group["params"]:
                self._take_over(parameter, group["split"], group["state_bits"])

    @torch.no_grad()
    def _take_over(self, parameter: nn.Parameter, split: bool, state_bits: int) -> None:
        assert parameter.dtype == torch.float32
        state = self.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        if split:
            parameter.data, state["master_low"] = round_bits(parameter.data.contiguous())
        assert own_part(parameter).is_contiguous()
        eight = has_8_bits(parameter.shape, state_bits)
        for name in ("exp_avg", "exp_avg_sq"):
            dtype = torch.uint8 if eight else torch.float32
            state[name] = zeros_as(parameter, tuple(parameter.shape), dtype)
            if eight:  # a scale of zero makes every value zero
                state[f"{name}_scale"] = zeros_as(parameter, scale_shape(parameter.shape), torch.float32)

    def keep_float32_gradients(self, wanted: bool) -> None:
        """Whether `.grad` of a bfloat16 weight is float32: exact sums of several contributions, 2 bytes more each."""
        for parameter, _ in self._split_parameters():
            parameter.grad_dtype = torch.float32 if wanted else torch.bfloat16

    @torch.no_grad()
    def restore_masters(self) -> None:
        """Make every split weight the float32 master it stands for, in place; a later step goes on from there."""
        for parameter, state in self._split_parameters():
            parameter.grad = None
            parameter.data = join_bits(parameter.data, state.pop("master_low"))
            parameter.grad_dtype = torch.float32

    def _split_parameters(self) -> list[tuple[nn.Parameter, dict[str, Tensor]]]:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        return [(p, self.state[p]) for p in parameters if "master_low" in self.state[p]]

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """The gradient norm in float32; the next step scales gradients by the formula of torch's clip_grad_norm_.

        Bfloat16 gradients are not rounded again: they are scaled in float32, within the update.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms = [torch.linalg.vector_norm(own_part(gradient), dtype=torch.float32) for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if (group := group_of_parts(gradients[0])) is not None:
            squares = norm.square()
            distributed.all_reduce(squares, group=group)
            norm = squares.sqrt()
        self.gradient_factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update, piece by piece."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                step = state["step"]
                rows, numbers = _rows(parameter).shape
                at_a_time = max(PIECE // (numbers * ROWS), 1) * ROWS
                for start in range(0, max(rows, 1), at_a_time):  # no row may lie here: its steps are counted
                    step = self._update(parameter, state, group, slice(start, start + at_a_time))
                state["step"] = step

    def _update(
        self, parameter: nn.Parameter, state: dict[str, Tensor], group: dict[str, Any], piece: slice
    ) -> Tensor:
        """Update one piece; returns the number of the step that it has taken."""
        assert parameter.grad is not None
        weight_RC = _rows(parameter.detach())[piece]
        low_RC = _rows(state["master_low"])[piece] if "master_low" in state else None
        master_RC = weight_RC
        if low_RC is not None:
            master_RC = self._made(_join)(weight_RC.view(torch.int16), low_RC).view(torch.float32)
        gradient_RC = _rows(own_part(parameter.grad).contiguous())[piece].float()
        if self.gradient_factor is not None:
            gradient_RC = gradient_RC * self.gradient_factor
        first, second = (_State(state, name, piece, self._made) for name in ("exp_avg", "exp_avg_sq"))
        first_RC, second_RC = first.read(), second.read()
        step = state["step"].clone()
        adamw(
            [master_RC],
            [gradient_RC],
            [first_RC],
            [second_RC],
            [],
            [step],
            fused=True,
            found_inf=self.found_inf,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        if low_RC is not None:
            # A step that is left out leaves the master, and so both its halves, as they were.
            self._made(_split_into)(master_RC.view(torch.int32), weight_RC.view(torch.int16), low_RC)
        first.write(first_RC, self.found_inf)
        second.write(second_RC, self.found_inf)
        return step


class _State:
    """One piece of a state: float32 in place, or 8 bits that are read and written back. `made`: see CompactAdamW."""

    def __init__(self, state: dict[str, Tensor], name: str, piece: slice, made: Callable[..., Any]) -> None:
        self.signed, self.made = name == "exp_avg", made
        self.values_RC = _rows(state[name])[piece]
        scale = state.get(f"{name}_scale")
        self.scale_RB = None if scale is None else _rows(scale)[piece]

    def read(self) -> Tensor:
        if self.scale_RB is None:
            return self.values_RC
        return self.made(_decode)(self.values_RC, self.scale_RB, dynamic_map(self.signed, self.scale_RB.device))

    def write(self, new_RC: Tensor, found_inf: Tensor | None) -> None:
        if self.scale_RB is not None:
            midpoints = _midpoints(self.signed, self.scale_RB.device)
            self.made(_encode_into)(new_RC, midpoints, found_inf, self.values_RC, self.scale_RB)


def _rows(tensor: Tensor) -> Tensor:
    """What lies here of a tensor as (R, C), C its last axis; a vector or a number is one row."""
    tensor = own_part(tensor)
    return tensor.view(-1, tensor.shape[-1]) if tensor.ndim > 1 else tensor.view(1, -1)


def quantize(values_RC: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Float32 numbers as (R, C) uint8 places in the dynamic map and (R, B) float32 scales, one for 256 of a row."""
    return _encode(values_RC, _midpoints(signed, values_RC.device))


def dequantize(codes_RC: Tensor, scale_RB: Tensor, signed: bool) -> Tensor:
    """The float32 numbers that `quantize` stands for."""
    return _decode(codes_RC, scale_RB, dynamic_map(signed, codes_RC.device))


def _encode(values_RC: Tensor, midpoints: Tensor) -> tuple[Tensor, Tensor]:
    numbers = values_RC.shape[1]
    blocks = _filled(values_RC).unflatten(1, (-1, BLOCK))
    scale_RB = blocks.abs().amax(dim=2)
    scaled = blocks / scale_RB.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(2)
    codes = torch.bucketize(scaled, midpoints, out_int32=True, right=True)
    return codes.to(torch.uint8).flatten(1)[:, :numbers], scale_RB


def _encode_into(
    new_RC: Tensor, midpoints: Tensor, found_inf: Tensor | None, codes_RC: Tensor, scale_RB: Tensor
) -> None:
    new_codes_RC, new_scale_RB = _encode(new_RC, midpoints)
    if found_inf is not None:
        # Reading and writing back is not the identity: the map ends at 1.0, but not at -1.0.
        new_codes_RC = torch.where(found_inf.bool(), codes_RC, new_codes_RC)
        new_scale_RB = torch.where(found_inf.bool(), scale_RB, new_scale_RB)
    codes_RC.copy_(new_codes_RC)
    scale_RB.copy_(new_scale_RB)


def _decode(codes_RC: Tensor, scale_RB: Tensor, values: Tensor) -> Tensor:
    numbers = codes_RC.shape[1]
    blocks = _filled(values[codes_RC.int()]).unflatten(1, (-1, BLOCK))
    return (blocks * scale_RB.unsqueeze(2)).flatten(1)[:, :numbers].contiguous()


def _filled(values_RC: Tensor) -> Tensor:
    """Every row filled up with zeros to whole blocks; a zero changes no largest magnitude."""
    missing = -values_RC.shape[1] % BLOCK
    return nn.functional.pad(values_RC, (0, missing)) if missing else values_RC


@cache
def dynamic_map(signed: bool, device: torch.device) -> Tensor:
    """The 256 rising values that a byte stands for: 0, 1, and seven decades with twice as many values in each next.

    As bitsandbytes and torchao have it; the signed one ends at 1 but not at -1.
    """
    values = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade * (1 if signed else 2) + 1)
        middles = 10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += [middles, -middles] if signed else [middles]
    return torch.cat(values).sort().values.to(device)


@cache
def _midpoints(signed: bool, device: torch.device) -> Tensor:
    values = dynamic_map(signed, device)
    return values[:-1] + (values[1:] - values[:-1]) * 0.5
