"""A batch to scores, over packed or padded rows. Scores and head are float32 at least (float64 when the model is).

Axes: T tokens of the row, S scores, D hidden size, B conversations, L padded length.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rmcli.errors import RmcliError
from rmcli.model.attention.row_share import RowShare
from rmcli.model.attention.shared_prefix import ATTENTION_NAME
from rmcli.model.batch import PackedBatch
from rmcli.model.device import arithmetic
from rmcli.model.network import backbone, is_trimmed, score_head
from rmcli.model.rope import forget_longest_row
from rmcli.model.sequence_parallel import sequence_group


def hidden_at_scores(
    network: PreTrainedModel,
    batch: Any,
    dtype: str = "auto",
    inputs_embeds: Tensor | None = None,
) -> Tensor:
    """(S, D) last hidden state at each reward position of a PackedBatch, SingleBatch or PaddedBatch.

    Each process of a sequence group (see sequence_parallel) is given the same packed batch, and gets all S.

    `inputs_embeds` replaces a packed or padded batch's token embeddings (for gradients with respect to them).
    """
    if (conversations := getattr(batch, "conversations", None)) is not None:
        return torch.cat([hidden_at_scores(network, one, dtype) for one in conversations])
    layout = getattr(batch, "layout", None)
    packed = network.config._attn_implementation == ATTENTION_NAME
    if packed != (layout is not None):
        # Shared positions under a stock attention are read as new documents: wrong without a sign of it.
        raise RmcliError(
            f"attention {network.config._attn_implementation} cannot run a {type(batch).__name__}",
            "model.use_varlen_attn must be what the model was loaded with",
        )
    device = batch.input_ids.device
    with arithmetic(network, dtype, device):
        if layout is not None:
            return _packed_hidden(network, batch, inputs_embeds)
        inputs = {"input_ids": batch.input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        forget_longest_row(network)
        result = backbone(network)(**inputs, attention_mask=batch.attention_mask, use_cache=False)
        rows = torch.arange(len(batch.score_index), device=device)
        return result.last_hidden_state[rows, batch.score_index]


def _packed_hidden(network: PreTrainedModel, batch: PackedBatch, inputs_embeds: Tensor | None) -> Tensor:
    """Each process of a sequence group runs its own tokens of the row, and gets the hidden states at all scores."""
    name, row = ("input_ids", batch.input_ids) if inputs_embeds is None else ("inputs_embeds", inputs_embeds)
    layout, position_ids = batch.layout, batch.position_ids
    if (group := sequence_group(network)) is not None:
        layout = RowShare.of(layout, group)
        row, position_ids = layout.take(row), layout.take(position_ids)
    result = backbone(network)(
        **{name: row},
        position_ids=position_ids,
        use_cache=False,
        packed_layout=layout,
        packed_backend=getattr(network, "packed_backend", "auto"),
    )
    hidden = result.last_hidden_state[0]
    return hidden if is_trimmed(network) else layout.take_scores(hidden, 0)


def scores(network: PreTrainedModel, batch: Any, dtype: str = "auto") -> Tensor:
    """(S,) float32 scores (float64 when the model is), in the order of groups and responses."""
    return apply_head(network, hidden_at_scores(network, batch, dtype))


def apply_head(network: PreTrainedModel, hidden_SD: Tensor) -> Tensor:
    weight = score_head(network).weight
    with torch.autocast(hidden_SD.device.type, enabled=False):
        return (hidden_SD.to(weight.dtype) @ weight.T).squeeze(-1)
