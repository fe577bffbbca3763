"""The frequencies of rotations in config.json in both forms: transformers 5's `rope_parameters`, and the older keys.

transformers 4 knows `rope_theta` and `rope_scaling` only. Of a config that has neither it says nothing and turns by
theta 10,000, whatever the model was trained with.
"""

import json
from pathlib import Path
from typing import Any

from rmcli import output
from rmcli.backbones.internlm2.auto import AutoConfig
from rmcli.backbones.pretrained import from_pretrained
from rmcli.config.files import read_json
from rmcli.errors import RmcliError

_FULL, _SLIDING = "full_attention", "sliding_attention"


def write_both_forms(folder: Path) -> None:
    """Add the older keys to config.json, where the installed transformers then reads what it read before."""
    path = folder / "config.json"
    before, text = _as_read(folder), path.read_text(encoding="utf-8")
    values = read_json(path)
    for part in (values, *(value for key, value in values.items() if key.endswith("_config"))):
        if isinstance(part, dict):
            part |= older_keys(part)
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    try:
        is_same = _as_read(folder) == before
    except RmcliError:  # some configs of layers at several rates take no other keys
        is_same = False
    if not is_same:
        path.write_text(text, encoding="utf-8")
        output.say("config.json has no rope keys for transformers 4: with both forms it is not read as it was")


def older_keys(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers 4 reads for the `rope_parameters` of a config; nothing where there are none.

    Where layers of two kinds turn at two rates, as in Gemma 3, that of the sliding ones is `rope_local_base_freq`.
    """
    parameters = config.get("rope_parameters") or {}
    nested = isinstance(parameters.get(_FULL), dict)
    rope = dict(parameters[_FULL] if nested else parameters)
    theta = rope.pop("rope_theta", None)
    if theta is None:
        return {}
    found: dict[str, Any] = {"rope_theta": theta}
    if (share := rope.pop("partial_rotary_factor", None)) is not None:
        found["partial_rotary_factor"] = share
    found["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    sliding = parameters.get(_SLIDING) if nested else None
    if sliding and sliding.get("rope_theta") is not None:
        found["rope_local_base_freq"] = sliding["rope_theta"]
    return found


def _as_read(folder: Path) -> list[Any]:
    """The rope parameters that the installed transformers makes of the folder."""
    place = {"pretrained_model_name_or_path": str(folder)}
    config = from_pretrained(AutoConfig, "config", str(folder), place)
    return [getattr(part, "rope_parameters", None) for part in (config, config.get_text_config())]
