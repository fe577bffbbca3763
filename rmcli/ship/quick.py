"""What every export is held against before it takes its place: plain transformers, in this process."""

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from rmcli import output
from rmcli.backbones import architectures
from rmcli.backbones.adapter_files import is_adapter_folder
from rmcli.backbones.internlm2.auto import MODEL_TYPE, AutoConfig, AutoSequenceClassifier, AutoTokenizer
from rmcli.backbones.pretrained import from_pretrained
from rmcli.config.files import read_json
from rmcli.errors import RmcliError
from rmcli.ship import golden, own, plain
from rmcli.ship.limits import WHOLE_GRID, limit

_HINT = "rmcli doctor shows versions; please report it with the model's name"


def verify_quickly(path: Path, parameters: int) -> None:
    """Score the folder's golden conversations one by one and padded, in float32. Raises RmcliError where they differ.

    Above WHOLE_GRID parameters it is left to `rmcli verify`.
    """
    if parameters > WHOLE_GRID:
        output.say(f"{parameters / 1e9:.1f}B parameters: rmcli verify scores the folder by plain transformers")
        return
    lines = [json.loads(line) for line in (path / golden.FILE).read_text(encoding="utf-8").splitlines()]
    place = {"pretrained_model_name_or_path": str(path)}
    config = from_pretrained(AutoConfig, "config", str(path), place)
    is_own = read_json(path / "config.json").get("model_type") == MODEL_TYPE
    by_rmcli = is_own or architectures.loads_only_here(config)
    load = _quiet(AutoSequenceClassifier, "weights")
    if is_adapter_folder(path):
        load = own.load_model if by_rmcli else partial(_with_adapters, load=load)
    loaders = load, _quiet(AutoTokenizer, "tokenizer")
    allowed = limit("float32", lines)
    cases = [_case(batch, allowed) for batch in (1, 8)]
    answers = plain.measure(str(path), cases, *loaders, own.score if by_rmcli else plain.logits)
    largest = max(_checked(answer, allowed) for answer in answers)
    by = "rmcli" if by_rmcli else "plain transformers"
    output.say(f"verified: {len(lines)} golden scores by {by}, largest difference {largest:.1g}")


def _with_adapters(folder: str, load: plain.Load, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses names that transformers will take away
        return plain.load_with_adapters(folder, load, **arguments)


def _case(batch: int, allowed: float) -> dict[str, Any]:
    return {"dtype": "float32", "attention": "eager", "batch": batch, "side": "right", "limit": allowed}


def _quiet(loader: Any, what: str) -> plain.Load:
    """transformers' loader, which says nothing and whose failures are one line."""

    def load(folder: str, trust_remote_code: bool, **arguments: Any) -> Any:
        assert not trust_remote_code
        return from_pretrained(loader, what, folder, {"pretrained_model_name_or_path": folder, **arguments})

    return load


def _checked(answer: dict[str, Any], allowed: float) -> float:
    found = answer.get("difference", 0.0)
    fault = answer.get("fault") or (
        f"a score is off by {found:.2g}, limit {allowed:.1g}" if found > allowed else None
    )
    if fault is not None:
        raise RmcliError(f"the exported folder does not score as its checkpoint: {fault}", _HINT)
    return found
