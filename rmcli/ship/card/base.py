"""What a card says of the model it was made of, and of its licence: what that model's own card says, or nothing."""

from collections.abc import Mapping
from typing import Any

from rmcli.ship.card.names import name_of, plain

UNKNOWN = "unknown"


def of_base(told: Mapping[str, Any] | None, given: str, random_weights: bool) -> dict[str, Any]:
    """What the template shows, from what run.json `told`; of a run that told nothing the name `given` at most.

    `license` is None where the base's card names none, or was not at hand.
    """
    told = told if isinstance(told, Mapping) else {"name": name_of(given), "on_hub": False}
    name, made_of = str(told.get("name")), told.get("made_of")
    return {
        "name": plain(name),
        "hub_name": name if told.get("on_hub") is True and not random_weights else None,
        "revision": plain(told["revision"]) if told.get("revision") else None,
        "random": random_weights,
        "made_of": [plain(one) for one in made_of] if isinstance(made_of, list) else [],
        "license": _text(told, "license"),
        "license_name": _text(told, "license_name"),
        "license_link": _text(told, "license_link"),
    }


def _text(told: Mapping[str, Any], key: str) -> str | None:
    value = told.get(key)
    return plain(value) if isinstance(value, str) and value else None
