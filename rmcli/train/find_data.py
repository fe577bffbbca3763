"""Which prepared set a run without --data takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmcli import output
from rmcli.config.layers import Resolved
from rmcli.config.sections import SourceSection
from rmcli.errors import ConfigError, RmcliError
from rmcli.packs.manifest import find_prepared, read_manifest


@dataclass(frozen=True)
class Elsewhere:
    """The one source that has been prepared, but for other presets, and how it was read."""

    sources: tuple[SourceSection, ...]
    dataset_map_fn: str | None
    split: str
    eval_fraction: float
    eval_seed: int
    keep_duplicates: bool
    decontaminate: tuple[str, ...]

    @staticmethod
    def from_manifest(manifest: Mapping[str, Any]) -> "Elsewhere":
        data = manifest["config"]["data"]
        return Elsewhere(
            tuple(SourceSection.model_validate(source) for source in manifest["sources"]),
            manifest["dataset_map_fn"],
            data["split"],
            data["eval_fraction"],
            data["eval_seed"],
            data["keep_duplicates"],
            tuple(data.get("decontaminate", ())),
        )


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
    own = [folder for folder, manifest in manifests.items() if manifest["preset"] == resolved.name]
    if len(own) == 1:
        return own[0]
    if own:
        raise ConfigError(
            f"several sets are prepared for {resolved.name}: {', '.join(map(str, own))}", "choose one with --data"
        )
    others = {Elsewhere.from_manifest(manifest) for manifest in manifests.values()}
    if len(others) == 1:
        return others.pop()
    found = f"{len(others)} sources are prepared for other presets" if others else f"nothing is prepared in {root}/"
    map_fn = resolved.config.data.dataset_map_fn or "F"
    raise RmcliError(
        f"no data for preset {resolved.name}: {found}",
        f"run: rmcli prepare --map-fn {map_fn} --preset {resolved.name}",
    )
