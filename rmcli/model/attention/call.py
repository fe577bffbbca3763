"""What one attention layer asks for, as every backend takes it."""

from typing import NamedTuple

from torch import Tensor

from rmcli.errors import ConfigError
from rmcli.model.attention.layout import PackedLayout


class Call(NamedTuple):
    """`query`: (1, H, T, D) or, at the reward positions, (1, H, S, D); `key`, `value`: (1, H_kv, T, D).

    `scaling` None is D ** -0.5. `window` counts the query itself. `softcap` bounds the logits by a tanh.
    `sinks`: (H,) one logit per head that takes part in the softmax and has no value.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    layout: PackedLayout
    scaling: float | None = None
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def scale(self) -> float:
        return self.query.shape[-1] ** -0.5 if self.scaling is None else self.scaling

    @property
    def is_grouped(self) -> bool:
        """Whether several query heads share one key head."""
        return self.query.shape[1] != self.key.shape[1]

    def refuse(self, backend: str, *, dropout: bool = False, softcap: bool = False, sinks: bool = False) -> None:
        """Raise ConfigError when this layer needs one of the named features, which the backend lacks."""
        if softcap and self.softcap is not None:
            raise ConfigError(f"attention {backend} has no soft-capping of logits", "set model.attention=auto")
        if sinks and self.sinks is not None:
            raise ConfigError(f"attention {backend} has no sinks", "set model.attention=auto")
        if dropout and self.dropout:
            raise ConfigError(
                f"attention {backend} has no dropout, and the model has {self.dropout}",
                "set it to 0 in config.json, or model.attention=sdpa",
            )
