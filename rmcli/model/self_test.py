"""The self-test at the start of a run: packed + shared against each conversation alone, on this model and device.

What is right is transformers' eager attention on single conversations in float32. Packed rows must equal it to EXACT
in float32, which proves their layout and positions on this architecture. Where the run computes in bfloat16, that is
then held against the same: single conversations themselves are some per cent away from float32 there, the more the
deeper the model, so packed rows may be TIMES as far. Where a mixture of experts sends one token elsewhere by rounding
it is farther, by chance: a probe that fails in bfloat16 is drawn again.
Compiled layers are no part of it: they are compiled when the first row of the run passes through them.
Axes: T tokens of the row, S scores, D hidden size, N random heads.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from rmcli import output
from rmcli.backbones import architectures
from rmcli.backbones.architectures import BatchChoice
from rmcli.errors import ConfigError, RmcliError
from rmcli.model import batch
from rmcli.model.attention.row_share import RowShare
from rmcli.model.backend import attention_backend, stock_attention, use_stock_attention
from rmcli.model.device import is_reduced
from rmcli.model.forward import hidden_at_scores
from rmcli.model.network import score_head
from rmcli.model.rope import hold_rope
from rmcli.model.sequence_parallel import sequence_group
from rmcli.parallel.collectives import largest
from rmcli.records import TokenGroup

NUM_HEADS = 64  # a single score may agree by chance
EXACT = 1e-4  # limit in float32
REDUCED, TIMES = 1e-2, 2  # in bfloat16: the least limit, and how many times the distance of single conversations
PROBES = 3  # drawn in bfloat16 at most


@dataclass(frozen=True)
class Outcome:
    """What one way to run the probe gives: (S, N) scores by random heads, (T, D) gradients of the embeddings."""

    scores: Tensor
    gradients: Tensor

    def distances(self, expected: "Outcome") -> tuple[float, float]:
        """|actual - expected| / |expected| of scores and of gradients; of several processes the largest, on all."""
        pairs = ((self.scores, expected.scores), (self.gradients, expected.gradients))
        here = [float((actual - other).norm() / other.norm()) for actual, other in pairs]
        finite = [distance if isfinite(distance) else float("inf") for distance in here]
        score, gradient = largest(torch.tensor(finite, dtype=torch.float64)).tolist()
        return score, gradient


@dataclass(frozen=True)
class Probe:
    """A few groups as one packed row, and as conversations alone.

    `alone`: S padded batches of one conversation each, in score order; `positions[j]` gives, for each token of
    conversation j, where it stands in the packed row. The heads are seeded random ones: with the zero head of a new
    model every score and gradient is zero and broken attention would pass.
    """

    packed: batch.PackedBatch
    alone: Sequence[batch.PaddedBatch]
    positions: Sequence[Sequence[int]]
    seed: int = 0

    @staticmethod
    def of(network: Any, seed: int = 0) -> "Probe":
        groups, positions = probe_groups(network.config.get_text_config().vocab_size, seed)
        device = network.device
        alone = batch.build_single(groups, device).conversations
        return Probe(batch.build_packed(groups, device), alone, positions, seed)

    def run_packed(self, network: Any, dtype: str) -> Outcome:
        heads_DN, direction_S = self._draw(network)
        hidden_SD, embeds = _hidden(network, self.packed, dtype)
        scores_SN = hidden_SD.to(heads_DN.dtype) @ heads_DN
        (gradient,) = torch.autograd.grad((scores_SN[:, 0] * direction_S).sum(), embeds)
        if (group := sequence_group(network)) is not None:
            # Of this process's own tokens, by the sum of one loss over the processes.
            whole = RowShare.of(self.packed.layout, group).put_together(gradient) / group.size
            gradient = whole[:, : self.packed.num_tokens]
        return Outcome(scores_SN.detach(), gradient[0].to(heads_DN.dtype))

    def run_alone(self, network: Any, dtype: str) -> Outcome:
        """Under eager attention, gradients added up where a prompt is shared."""
        heads_DN, direction_S = self._draw(network)
        gradients = heads_DN.new_zeros(self.packed.input_ids.shape[1], len(heads_DN))
        scores = []
        with stock_attention(network, "eager"):
            for number, conversation in enumerate(self.alone):
                hidden_SD, embeds = _hidden(network, conversation, dtype)
                scores_SN = hidden_SD.to(heads_DN.dtype) @ heads_DN
                (gradient,) = torch.autograd.grad(scores_SN[0, 0] * direction_S[number], embeds)
                index = torch.tensor(self.positions[number], device=gradient.device)
                gradients = gradients.index_add(0, index, gradient[0].to(gradients.dtype))
                scores.append(scores_SN.detach())
        return Outcome(torch.cat(scores), gradients)

    def _draw(self, network: Any) -> tuple[Tensor, Tensor]:
        """(D, N) heads and (S,) the direction whose gradient is taken, in the precision of scores."""
        generator = torch.Generator().manual_seed(self.seed)
        weight = score_head(network).weight
        heads_DN = torch.randn(weight.shape[1], NUM_HEADS, generator=generator)
        direction_S = torch.randn(len(self.alone), generator=generator)
        return heads_DN.to(weight.device, weight.dtype), direction_S.to(weight.device, weight.dtype)


def _hidden(network: Any, one: Any, dtype: str) -> tuple[Tensor, Tensor]:
    """Hidden states at the scores, and the embeddings that they come from.

    The embeddings are caught where the network makes them: a sharded one makes them nowhere else.
    """
    caught: list[Tensor] = []

    def cut_off(module: Any, arguments: Any, embeds: Tensor) -> Tensor:
        caught.append(embeds.detach().requires_grad_())
        return caught[-1]

    handle = network.get_input_embeddings().register_forward_hook(cut_off)
    try:
        return hidden_at_scores(network, one, dtype), caught[0]
    finally:
        handle.remove()


@dataclass(frozen=True)
class SelfTest:
    """Distances of packed rows from single conversations in float32, and what they may be."""

    score_error: float
    gradient_error: float
    score_limit: float
    gradient_limit: float

    @property
    def passed(self) -> bool:
        # A NaN compares false: it does not pass.
        return self.score_error <= self.score_limit and self.gradient_error <= self.gradient_limit

    def said(self, precision: str) -> str | None:
        """Say the result; returns what is wrong, if anything is."""
        limits = f"limit {self.score_limit:.0e}"
        if self.score_limit != self.gradient_limit:
            limits = f"limits {self.score_limit:.1e}, {self.gradient_limit:.1e}"
        output.say(
            f"self-test{precision}: packed + shared against each conversation alone: score {self.score_error:.1e}, "
            f"gradient {self.gradient_error:.1e} ({limits}) {'ok' if self.passed else 'FAILED'}"
        )
        if self.passed:
            return None
        return (
            f"scores of packed rows are {self.score_error:.1e} apart from single ones, gradients "
            f"{self.gradient_error:.1e} ({limits}){precision}"
        )


@dataclass(frozen=True)
class Expected:
    """Single conversations of each probe in float32, and what is wrong with packed rows there."""

    outcomes: tuple[Outcome, ...] = ()
    problem: str | None = None


def expect(network: Any, choice: BatchChoice, dtype: str, seed: int = 0) -> Expected:
    """The self-test in float32, said aloud, and what the one in bfloat16 needs of it; nothing unless rows are packed.

    Called as soon as the weights are loaded: once they are bfloat16 nothing can tell what is right.
    """
    if choice.kind != "packed":
        return Expected()
    assert network.dtype != torch.bfloat16
    reduced = is_reduced(dtype, network.device)
    try:
        with _evaluating(network):
            probes = [Probe.of(network, seed + number) for number in range(PROBES if reduced else 1)]
            outcomes = tuple(probe.run_alone(network, "float32") for probe in probes)
            with attention_backend(network, "sdpa") if reduced else nullcontext():
                packed = probes[0].run_packed(network, "float32")
    except ConfigError:
        raise  # the attention that was asked for lacks what this model needs
    except RmcliError as error:
        return Expected(problem=error.message)
    return Expected(outcomes, SelfTest(*packed.distances(outcomes[0]), EXACT, EXACT).said(""))


def compare_reduced(network: Any, probe: Probe, outcome: Outcome, dtype: str) -> SelfTest:
    """Packed rows in bfloat16 against float32; the limits are what single conversations reach, times TIMES."""
    with _evaluating(network):
        errors = probe.run_packed(network, dtype).distances(outcome)
        of_alone = probe.run_alone(network, dtype).distances(outcome)
    return SelfTest(*errors, *(max(REDUCED, TIMES * distance) for distance in of_alone))


@contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def settle_batches(
    network: Any, choice: BatchChoice, dtype: str, seed: int = 0, expected: Expected | None = None
) -> BatchChoice:
    """Say how conversations are run, and prove packed rows on this model and device.

    A proven architecture that fails is a fault: raises RmcliError. One nobody has proven falls back to one
    conversation per forward; that is said aloud. Rows of several conversations are all below a rope's switch length
    (`architectures.choose_batches`), so its frequencies are held. `expected` is what `expect` gave for this dtype and
    seed, where the weights have changed since.
    """
    if choice.kind == "padded":
        hold_rope(network)
        output.warn("use_varlen_attn = false: conversations are padded, the prompt runs twice (the slow reference)")
        return choice
    if choice.kind == "single":
        return _single(network, str(choice.reason))
    expected = expected or expect(network, choice, dtype, seed)
    problem = expected.problem
    if problem is None and (network.dtype == torch.bfloat16 or is_reduced(dtype, network.device)):
        problem = _problem_in_bfloat16(network, expected.outcomes, dtype, seed)
    if problem is None:
        hold_rope(network)
        return choice
    if architectures.is_proven(network.config):
        raise RmcliError(f"self-test failed: {problem}", "model.use_varlen_attn=false runs without packed rows")
    return _single(network, f"packed rows are not exact here: {problem}")


def _single(network: Any, reason: str) -> BatchChoice:
    if sequence_group(network) is not None:
        raise RmcliError(f"no packed rows to share: {reason}", "set parallel.sequence_parallel_size=1")
    output.warn(f"one conversation per forward, no shared prompts (slower): {reason}")
    use_stock_attention(network)
    return BatchChoice("single", reason)


def _problem_in_bfloat16(network: Any, outcomes: Sequence[Outcome], dtype: str, seed: int) -> str | None:
    """What is wrong by every probe; None as soon as one passes."""
    problem = None
    for number, outcome in enumerate(outcomes):
        try:
            result = compare_reduced(network, Probe.of(network, seed + number), outcome, dtype)
        except ConfigError:
            raise
        except RmcliError as error:
            return error.message
        problem = result.said(" in bfloat16")
        if problem is None:
            return None
    return problem


def probe_groups(vocab_size: int, seed: int) -> tuple[list[TokenGroup], list[list[int]]]:
    """Two groups of a few seeded tokens, and where each token of each conversation stands in the packed row."""
    generator = torch.Generator().manual_seed(seed)
    groups, positions, start = [], [], 0
    for prefix_length, response_lengths in ((7, (5, 3)), (4, (2, 6))):
        draw = [torch.randint(vocab_size, (n,), generator=generator) for n in (prefix_length, *response_lengths)]
        prefix, *responses = (tokens.numpy().astype("int32") for tokens in draw)
        groups.append(TokenGroup(prefix, tuple(responses)))
        response_start = start + prefix_length
        for response in responses:
            own = range(response_start, response_start + len(response))
            positions.append([*range(start, start + prefix_length), *own])
            response_start += len(response)
        start = response_start
    return groups, positions
