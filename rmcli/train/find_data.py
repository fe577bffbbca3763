"""Which prepared set a run without --data takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rmcli import output
from rmcli.config.layers import Layer, Resolved
from rmcli.config.resolve import relayer
from rmcli.config.sections import DataSection
from rmcli.errors import ConfigError, RmcliError
from rmcli.packs.manifest import find_prepared, read_manifest
from rmcli.rows.map_fns.known import AUTO, NAMED

# What another preset's set is prepared again with, for which rows are read and held out.
_REPEATED = {
    *("sources", "dataset_map_fn", "split", "eval_fraction", "eval_seed"),
    *("keep_duplicates", "decontaminate"),
}


@dataclass(frozen=True)
class Elsewhere:
    """The one source that has been prepared, but for other presets, and how it was read."""

    data: DataSection
    folder: Path = field(compare=False)
    map_fn_sha256: Mapping[str, str] = field(compare=False)

    @staticmethod
    def from_manifest(folder: Path, manifest: Mapping[str, Any]) -> "Elsewhere":
        """Raises RmcliError where the manifest does not say how the rows were read."""
        try:
            told = {key: value for key, value in manifest["config"]["data"].items() if key in _REPEATED}
            own = {key: manifest[key] for key in ("sources", "dataset_map_fn")}
            hashes = manifest["map_fn_sha256"].items()
            data = DataSection.model_validate({**told, **own})
            return Elsewhere(data, folder, {str(name): str(sha256) for name, sha256 in hashes})
        except (KeyError, AttributeError, TypeError, ValidationError) as error:
            raise RmcliError(f"its manifest does not say how rows were read ({type(error).__name__})") from error

    def asked_again(self, resolved: Resolved) -> Resolved:
        """The configuration with rows read as they were there, but for what the user asks for."""
        told = self.data.model_dump(include=_REPEATED)
        values = {key: value for key, value in told.items() if f"data.{key}" not in resolved.explicit}
        return relayer(resolved, Layer("prepared for another preset", {"data": values}))


def unnamed_map_fns(wanted: Resolved, named: Resolved) -> list[str]:
    """Map functions of `wanted` that are neither built in nor named by the user, in `named`.

    To load one is to run what it names, and anyone can write a manifest: a folder of data never decides that.
    """
    data, own = wanted.config.data, named.config.data
    known = {AUTO, *NAMED}
    if "data.dataset_map_fn" in named.explicit:
        known.add(own.dataset_map_fn or AUTO)
    if "data.sources" in named.explicit:
        known |= {source.dataset_map_fn for source in own.sources if source.dataset_map_fn is not None}
    specs = [data.dataset_map_fn, *(source.dataset_map_fn for source in data.sources)]
    return list(dict.fromkeys(spec for spec in specs if spec is not None and spec not in known))


def find_data(resolved: Resolved, root: Path) -> Path | Elsewhere:
    """The set under `root` prepared for this preset, or the only source prepared for others.

    Raises ConfigError when several are prepared for it, RmcliError with the command to run when there is no choice.
    """
    manifests: dict[Path, dict[str, Any]] = {}
    for folder in find_prepared(root):
        try:
            manifests[folder] = read_manifest(folder)
        except RmcliError as error:
            output.warn(f"{folder} is left out: {error.message}")
    own = [folder for folder, manifest in manifests.items() if manifest.get("preset") == resolved.name]
    if len(own) == 1:
        return own[0]
    if own:
        raise ConfigError(
            f"several sets are prepared for {resolved.name}: {', '.join(map(str, own))}", "choose one with --data"
        )
    others: list[Elsewhere] = []
    for folder, manifest in manifests.items():
        try:
            other = Elsewhere.from_manifest(folder, manifest)
        except RmcliError as error:
            output.warn(f"{folder} is left out: {error.message}")
            continue
        others += [other] if other not in others else []
    if len(others) == 1:
        return others.pop()
    found = f"{len(others)} sources are prepared for other presets" if others else f"nothing is prepared in {root}/"
    map_fn = resolved.config.data.dataset_map_fn or "F"
    raise RmcliError(
        f"no data for preset {resolved.name}: {found}",
        f"run: rmcli prepare --map-fn {map_fn} --preset {resolved.name}",
    )
