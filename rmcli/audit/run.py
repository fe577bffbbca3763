"""The audit of a prepared folder, from that folder alone: one pass over each split, pack by pack.

What grows with the data is a few numbers per group and per comparison (hashes of token ids); token ids are kept of a
bounded number of rows only.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli import output
from rmcli.audit.figures.contradictions import Contradictions
from rmcli.audit.figures.duplicates import Duplicates
from rmcli.audit.figures.extremes import Extremes
from rmcli.audit.figures.gathered import gather
from rmcli.audit.figures.near_prompts import near_duplicate_prompts
from rmcli.audit.figures.sources import BySource
from rmcli.audit.figures.split import Split
from rmcli.audit.figures.text import Text
from rmcli.audit.figures.values import Figures
from rmcli.audit.findings import findings
from rmcli.config.sections import ModelSection
from rmcli.errors import RmcliError
from rmcli.packs.manifest import read_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SPLITS

if TYPE_CHECKING:
    from rmcli.tokens.tokenizer import RewardTokenizer


def run(
    folder: Path, model: ModelSection, prepared_with: "RewardTokenizer | None" = None, num_threads: int = 1
) -> Figures:
    """All figures of a prepared folder.

    `model`: whose tokenizer turns ids into text; when it cannot be had, or is not the one that prepared the folder,
    that is said and excerpts are ids. `prepared_with` is that tokenizer where it is at hand. Raises RmcliError when
    the folder is no prepared data or is damaged.
    """
    output.doing(f"auditing {folder}")
    manifest = read_manifest(folder)
    text = Text.of(model, manifest) if prepared_with is None else Text.by(prepared_with.tokenizer)
    splits = {split: Split(PackedSplit(folder, split), split, text) for split in SPLITS}
    gathered = [gather(split) for split in splits.values()]
    capacity = manifest["config"]["data"]["max_packed_length"]
    figures: Figures = {
        "folder": str(folder),
        "preset": manifest["preset"],
        "rows": manifest.get("rows", {}),
        "rows_left_out": dict(sorted(_reject_reasons(folder).items())),
        "rows_noted": dict(_noted(manifest)),
        "excerpts": text.note,
        "reply": text.reply_note,
        "splits": {
            split.name: one.figures(capacity, manifest["splits"][split.name]["num_truncated"], text)
            for split, one in zip(splits.values(), gathered, strict=True)
        },
        "sources": BySource.figures([one.by_source for one in gathered], manifest["sources"]),
        "duplicates": Duplicates.figures([one.duplicates for one in gathered]),
        "contradictions": Contradictions.figures([one.contradictions for one in gathered]),
        "near_duplicate_prompts": near_duplicate_prompts(splits["train"], splits["eval"], text, num_threads),
        "extremes": Extremes.figures([one.extremes for one in gathered], text),
    }
    figures["findings"] = findings(figures)
    return figures


def _noted(manifest: Mapping[str, Any]) -> Counter[str]:
    """Rows kept of which prepare has noted something, by what."""
    counted: Counter[str] = Counter()
    for source in manifest.get("rows_by_source", ()):
        counted.update(source.get("noted", {}))
    return counted


def _reject_reasons(folder: Path) -> Counter[str]:
    """Rows left out, by reason, counted in rejects.jsonl."""
    path = folder / "rejects.jsonl"
    try:
        with path.open(encoding="utf-8") as lines:
            return Counter(json.loads(line)["reason"] for line in lines)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RmcliError(f"{path} cannot be read: {error}", "prepare it again with --overwrite") from error
