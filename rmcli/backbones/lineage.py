"""What a model's own card says of it: its licence, and what it was made of. Read where it lies; no hub is asked."""

import re
from pathlib import Path
from typing import Any

from rmcli.config.presets import pretrained_arguments

CARD = "README.md"
_LONGEST = 2**20  # bytes of a card that is looked at
_LICENSE = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_LINK = re.compile(r"https://[\w./%~+:@-]{1,200}")


def lineage(name_or_path: str, revision: str | None = None) -> dict[str, Any]:
    """`name` (never a path), whether it is `on_hub`, and what its card says: `license`, `license_name`,
    `license_link`, `made_of` (Hub names). What it does not say, or not in such a form, is not in it.

    Raises ConfigError where nothing is at the path.
    """
    arguments = pretrained_arguments(name_or_path, revision)
    folder = Path(arguments["pretrained_model_name_or_path"])
    on_hub = not folder.is_dir()
    own = arguments.get("gguf_file", folder.resolve().name)
    told: dict[str, Any] = {"name": name_or_path if on_hub else own, "on_hub": on_hub}
    if on_hub and revision is not None:
        told["revision"] = revision
    card = _cached(name_or_path, revision) if on_hub else folder / CARD
    return told | (_said(card) if card is not None else {})


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, CARD, revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _said(card: Path) -> dict[str, Any]:
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    try:
        told = metadata_load(card) if card.is_file() and card.stat().st_size <= _LONGEST else None
    except (OSError, ValueError, YAMLError, RecursionError):  # a card that is none says nothing
        return {}
    told = told or {}
    forms = {"license": _LICENSE, "license_name": _LICENSE, "license_link": _LINK}
    found: dict[str, Any] = {key: told[key] for key, form in forms.items() if _matches(form, told.get(key))}
    base = told.get("base_model")
    made_of = [one for one in (base if isinstance(base, list) else [base]) if _matches(_HUB_NAME, one)][:4]
    return found | ({"made_of": made_of} if made_of else {})


def _matches(form: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None
