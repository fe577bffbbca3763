"""README.md of a model folder. No hub is asked: what it says comes from the run folder and the prepared data.

The last line proves that nobody has written in it since: a card that its owner has changed is not replaced.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rmcli.config.sections import Config
from rmcli.runs import record
from rmcli.runs.metrics_file import evaluation_at
from rmcli.ship.card.base import UNKNOWN, of_base
from rmcli.ship.card.configuration import changed_keys
from rmcli.ship.card.data import of_data
from rmcli.ship.card.evaluation import Accuracy, about_length, accuracy
from rmcli.ship.card.names import plain
from rmcli.tokens.tokenizer import RewardTokenizer

_TEMPLATE = Path(__file__).parent / "page.md"
_SEAL = re.compile(r"<!-- written by rmcli, sha256 ([0-9a-f]{64}) -->\n")


def card(
    run_folder: Path,
    data_folder: Path | None,
    config: Config,
    reward: RewardTokenizer,
    step: int | None,
    dtype: str,
    plain_transformers: bool,
) -> str:
    """The card of the weights after `step`. `plain_transformers`: whether that loads the folder."""
    told = record.read(run_folder) or {}
    model = config.model
    base = of_base(told.get("base"), str(model.pretrained_model_name_or_path), model.random_weights)
    figures = {} if step is None else evaluation_at(run_folder, step)
    found = accuracy(figures)
    page = ModelCard.from_template(
        _metadata(base, found, plain_transformers),
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        base=base,
        versions=_versions(told),
        data=of_data(data_folder),
        data_sha256=_data_sha256(told),
        toml=changed_keys(config, base["hub_name"]),
        step=step,
        figures=figures,
        accuracy=found,
        about_length=about_length(figures) if figures else [],
        dtype=dtype,
        plain_transformers=plain_transformers,
        mode=reward.mode,
        reward_token=plain(reward.reward_token.replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")),
        max_length=config.data.max_length,
        overlong=config.data.overlong,
        loss=config.loss.loss_type,
        unknown=UNKNOWN,
        number=_number,
    )
    return sealed(str(page))


def sealed(text: str) -> str:
    """With the line that proves it."""
    text = text.rstrip("\n") + "\n\n"
    return f"{text}<!-- written by rmcli, sha256 {_sha256(text)} -->\n"


def is_ours(text: str) -> bool:
    """Whether a card is one of these, and nobody has changed it."""
    found = _SEAL.search(text)
    return found is not None and found.end() == len(text) and found[1] == _sha256(text[: found.start()])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _metadata(base: Mapping[str, Any], found: Accuracy | None, plain_transformers: bool) -> ModelCardData:
    """What the Hub shows and searches by."""
    results = None
    if found is not None:
        results = [
            EvalResult(
                task_type="text-classification",
                dataset_type="held-out",
                dataset_name="pairs held out of the training data",
                metric_type="accuracy",
                metric_name="pairwise accuracy",
                metric_value=round(found.share, 4),
            )
        ]
    return ModelCardData(
        base_model=base["hub_name"],
        library_name="transformers" if plain_transformers else "rmcli",
        license=base["license"] or UNKNOWN,
        license_name=base["license_name"],
        license_link=base["license_link"],
        pipeline_tag="text-classification",
        tags=["reward-model", "rmcli"],
        model_name=None if results is None else f"reward model of {base['name']}",
        eval_results=results,
    )


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "not told"


def _versions(told: Mapping[str, Any]) -> str | None:
    versions = told.get("versions")
    if not isinstance(versions, Mapping):
        return None
    return ", ".join(f"{plain(name)} {plain(version)}" for name, version in versions.items())


def _data_sha256(told: Mapping[str, Any]) -> str | None:
    data = told.get("data")
    return plain(data.get("manifest_sha256")) if isinstance(data, Mapping) else None
