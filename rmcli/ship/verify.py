"""`rmcli verify`: a model folder against its own golden scores, by plain transformers in a fresh process."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from rmcli import output
from rmcli.backbones import architectures
from rmcli.backbones.adapter_files import is_adapter_folder
from rmcli.backbones.internlm2.auto import MODEL_TYPE, AutoConfig
from rmcli.backbones.pretrained import from_pretrained
from rmcli.backbones.shards import check_shards
from rmcli.config.files import read_json
from rmcli.errors import RmcliError
from rmcli.model.hashes import first_fault, read_by_no_loader
from rmcli.ship import golden
from rmcli.ship.faults import config_fault
from rmcli.ship.fresh import answers
from rmcli.ship.golden import Golden
from rmcli.ship.limits import WHOLE_GRID, limit

_FROM_PADDING = "the architecture counts padding on the left: pad on the right"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `fault` says what is wrong, `note` why nothing can be."""

    case: str
    difference: float | None = None  # the largest between a score and its golden one
    limit: float | None = None
    fault: str | None = None
    note: str | None = None

    @property
    def verdict(self) -> str:
        return self.fault or self.note or "ok"


@dataclass(frozen=True)
class Verified:
    """All checks of a folder; `scored_by` is transformers, rmcli for what that lacks, or nothing."""

    model: str
    golden: int
    scored_by: str
    checks: list[Check]

    @property
    def first_failure(self) -> Check | None:
        return next((check for check in self.checks if check.fault is not None), None)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.first_failure is None}


def verify(folder: Path) -> Verified:
    """Every check; scores only where the files are as they were exported.

    Raises RmcliError for a folder without golden scores, or whose files cannot be read.
    """
    lines = golden.read(folder)
    config = read_json(folder / "config.json")
    checks = [
        Check("files", fault=first_fault(folder, may_be_added=read_by_no_loader)),
        Check("config.json", fault=config_fault(config)),
    ]
    if any(check.fault is not None for check in checks):
        return Verified(str(folder), len(lines), "nothing", checks)
    output.doing(f"scoring {len(lines)} golden conversations")
    place = {"pretrained_model_name_or_path": str(folder)}
    loaded = from_pretrained(AutoConfig, "config", str(folder), place)
    is_own = config.get("model_type") == MODEL_TYPE or architectures.loads_only_here(loaded)
    by = "rmcli" if is_own else "transformers"
    has_state = architectures.choose_batches(True, loaded, 1).kind == "single"
    cases = cases_of(config.get("dtype") or "float32", _num_parameters(folder, loaded), lines)
    checks += [judged(case, answer, has_state) for case, answer in answers(folder, cases, by)]
    return Verified(str(folder), len(lines), by, checks)


def _num_parameters(folder: Path, config: PreTrainedConfig) -> int:
    """Of all weight files, by their headers; of adapters' base model, by its config."""
    if is_adapter_folder(folder):
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False).num_parameters()
    found = 0
    paths = list(folder.glob("*.safetensors"))
    if not paths:
        raise RmcliError(
            f"{folder} has no weights in .safetensors", "pickled weights are not shipped: export it again"
        )
    check_shards(folder)
    try:
        for path in paths:
            with safe_open(path, framework="pt") as file:
                found += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RmcliError(f"the weights of {folder} cannot be read: {error}", "the file is damaged") from error
    return found


def cases_of(dtype: str, parameters: int, lines: list[Golden]) -> Iterator[dict[str, Any]]:
    """The whole grid, or, of a large model, one pass for each side of padding in the type it ships in."""
    whole = parameters <= WHOLE_GRID
    dtypes = dict.fromkeys(("float32", dtype) if whole else (dtype,))
    grid = product(dtypes, ("eager", "sdpa") if whole else ("eager",), (1, 8) if whole else (8,), ("left", "right"))
    for one, attention, batch, side in grid:
        yield {"dtype": one, "attention": attention, "batch": batch, "side": side, "limit": limit(one, lines)}


def judged(case: dict[str, Any] | None, answer: dict[str, Any], has_state: bool = False) -> Check:
    """The verdict on a case, or on the tokenizer, which is none.

    `has_state`: the architecture may carry something over from the padding before a text.
    """
    fault = answer.get("fault")
    if case is None:
        return Check("tokenizer", fault=fault)
    name = f"{case['dtype']} {case['attention']}, batch {case['batch']}, {case['side']}"
    if fault == "":
        return Check(name, note=f"the architecture does not take {case['attention']}")
    if fault is not None:
        return Check(name, fault=fault)
    difference, allowed = answer["difference"], case["limit"]
    if difference <= allowed:
        return Check(name, difference, allowed)
    if case["side"] == "left" and (has_state or answer.get("with_positions", math.inf) <= allowed):
        return Check(name, difference, note=_FROM_PADDING)
    return Check(name, difference, allowed, fault="another score")
