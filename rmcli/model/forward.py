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


def hidden_at_scores(network: PreTrainedModel, batch: Any, dtype: str = "auto") -> Tensor:
    """(S, D) last hidden state at each reward position of a PackedBatch, SingleBatch or PaddedBatch.

    Each process of a sequence group (see sequence_parallel) is given the same packed batch, and gets all S.
    """
    if (conversations := getattr(batch, "conversations", None)) is not None:
        return torch.cat([hidden_at_scores(network, one, dtype) for one in conversations])
    is_packed = getattr(batch, "layout", None) is not None
    if is_packed != (network.config._attn_implementation == ATTENTION_NAME):
        # Shared positions under a stock attention are read as new documents: wrong without a sign of it.
        raise RmcliError(
            f"attention {network.config._attn_implementation} cannot run a {type(batch).__name__}",
            "model.use_varlen_attn must be what the model was loaded with",
        )
    device = batch.input_ids.device
    with arithmetic(network, dtype, device):
        if is_packed:
            return _packed_hidden(network, batch)
        forget_longest_row(network)
        result = backbone(network)(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        rows = torch.arange(len(batch.score_index), device=device)
        return result.last_hidden_state[rows, batch.score_index]


def _packed_hidden(network: PreTrainedModel, batch: PackedBatch) -> Tensor:
    input_ids, position_ids, layout = batch.input_ids, batch.position_ids, batch.layout
    if (group := sequence_group(network)) is not None:
        layout = RowShare.of(layout, group)
        input_ids, position_ids = layout.take(input_ids), layout.take(position_ids)
    result = backbone(network)(
        input_ids=input_ids,
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
    head = score_head(network)  # called, not read: where weights are cut, calling it puts them together
    with torch.autocast(hidden_SD.device.type, enabled=False):
        return head(hidden_SD.to(head.weight.dtype)).squeeze(-1)
