"""The self-test at the start of a run: packed + shared against each conversation alone, on this model and device."""

from typing import Any

import torch

from rmcli import architectures, batch, model, output
from rmcli.architectures import RowChoice
from rmcli.errors import ConfigError, RmcliError
from rmcli.records import TokenGroup


def settle_rows(network: Any, choice: RowChoice, dtype: str, seed: int = 0) -> RowChoice:
    """Say how conversations are run, and prove packed rows on this model and device.

    A proven architecture that fails is a fault: raises RmcliError. One nobody has proven falls back to one
    conversation per forward; that is said aloud. Rows of several conversations are all below a rope's switch length
    (`architectures.choose_rows`), so its frequencies are held.
    """
    if choice.rows == "padded":
        model.hold_rope(network)
        output.warn("use_varlen_attn = false: conversations are padded, the prompt runs twice (the slow reference)")
        return choice
    if choice.rows == "single":
        return _single(network, str(choice.reason))
    problem = _problem(network, dtype, seed)
    if problem is None:
        model.hold_rope(network)
        return choice
    if architectures.is_proven(network.config):
        raise RmcliError(f"self-test failed: {problem}", "model.use_varlen_attn=false runs without packed rows")
    return _single(network, f"packed rows are not exact here: {problem}")


def _single(network: Any, reason: str) -> RowChoice:
    output.warn(f"one conversation per forward, no shared prompts (slower): {reason}")
    model.use_stock_attention(network)
    return RowChoice("single", reason)


def _problem(network: Any, dtype: str, seed: int) -> str | None:
    """What is wrong with packed rows on this network; None when the self-test passes."""
    groups, positions = probe_groups(network.config.get_text_config().vocab_size, seed)
    device = network.device
    try:
        result = model.compare_with_alone(
            network,
            batch.build_packed(groups, device),
            batch.build_single(groups, device).conversations,
            positions,
            dtype,
        )
    except ConfigError:
        raise  # the attention that was asked for lacks what this model needs
    except RmcliError as error:
        return error.message
    verdict = "ok" if result.passed else "FAILED"
    output.say(
        f"self-test: packed + shared against each conversation alone: score {result.score_error:.1e}, "
        f"gradient {result.gradient_error:.1e} (limit {result.tolerance:.0e}) {verdict}"
    )
    if result.passed:
        return None
    return (
        f"scores of packed rows are {result.score_error:.1e} apart from single ones, gradients "
        f"{result.gradient_error:.1e} (limit {result.tolerance:.0e})"
    )


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
