"""What a card says of the data: sources, hashes, and what became of every row. From the set's manifest alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmcli import output
from rmcli.config.sections import SourceSection
from rmcli.errors import RmcliError
from rmcli.packs.manifest import read_manifest
from rmcli.packs.schema import SPLITS
from rmcli.rows.accounting import FATES, equation
from rmcli.rows.sources import is_hub_name
from rmcli.ship.card.names import name_of, plain


def of_data(folder: Path | None) -> dict[str, Any] | None:
    """What the template shows of a prepared set; None where it is not at hand, or, which is said, cannot be read."""
    if folder is None:
        return None
    try:
        return _told(read_manifest(folder))
    except RmcliError as error:
        output.warn(f"the model card says nothing of the data: {error.message}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        output.warn(f"the model card says nothing of the data: its manifest is not whole ({type(error).__name__})")
    return None


def _told(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "sha256": manifest["manifest_sha256"],
        "map_fns": {plain(name_of(name)): sha256 for name, sha256 in (manifest.get("map_fn_sha256") or {}).items()},
        "sources": _sources(manifest),
        "rows": equation(manifest["rows"]) if "rows" in manifest else None,
        "reasons": {plain(name): count for name, count in manifest.get("rows", {}).get("reasons", {}).items()},
        "splits": [{"name": name, **manifest["splits"][name]} for name in SPLITS if name in manifest["splits"]],
    }


def _sources(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each by its name, and what became of its rows."""
    accounts = manifest.get("rows_by_source") or []
    found = []
    for number, given in enumerate(manifest.get("sources", ())):
        section = SourceSection.model_validate(given)
        path = section.path if is_hub_name(section.path) else name_of(section.path)
        told = accounts[number] if number < len(accounts) else {}
        fates = {fate: told.get(fate) for fate in ("in", *FATES)}
        found.append({"name": plain(section.name or path), **fates})
    return found
