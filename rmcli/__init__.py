"""rmcli: train, score and inspect reward models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmcli.scorer.reward_model import RewardModel, Score

__version__ = "0.1.0"
__all__ = ["RewardModel", "Score", "__version__"]


def __getattr__(name: str) -> Any:
    """`from rmcli import RewardModel` loads torch and transformers; `import rmcli` alone does not."""
    if name in ("RewardModel", "Score"):
        from rmcli.scorer import reward_model

        return getattr(reward_model, name)
    raise AttributeError(f"module 'rmcli' has no attribute {name!r}")
