"""What its owner has put into a model folder, which a new export of it must not lose."""

import shutil
from pathlib import Path

from rmcli import output
from rmcli.model.hashes import CARD_FILE, HASHES_FILE, listed_names, read_by_no_loader
from rmcli.ship.card.page import is_ours


def keep_own(before: Path, now: Path) -> None:
    """Copy into `now` what of `before` is its owner's: a card written or changed by hand, and files of other names.

    The card takes the place of the one written now. Which were kept is said. Raises OSError.
    """
    kept = own_files(before) if before.is_dir() else []
    for name in kept:
        if name == CARD_FILE or not (now / name).exists():
            shutil.copy2(before / name, now / name)
    if kept:
        note = "; the card is your own, and none is written" if CARD_FILE in kept else ""
        output.warn(f"kept of the earlier {before}: {', '.join(kept)}{note}")


def own_files(folder: Path) -> list[str]:
    """Names of the files that no export wrote and no loader reads; the card where it is not as one wrote it."""
    written = {*listed_names(folder), HASHES_FILE}
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()]
    other = [name for name in names if name not in written and name != CARD_FILE and read_by_no_loader(name)]
    card = folder / CARD_FILE
    is_own = card.is_file() and not is_ours(card.read_text(encoding="utf-8", errors="replace"))
    return ([CARD_FILE] if is_own else []) + other


def lost_by_replacing(folder: Path) -> str | None:
    """The first thing in an earlier export that a new one would take away: a folder, a link, a file for loaders."""
    kept = {*listed_names(folder), *own_files(folder), CARD_FILE, HASHES_FILE}
    return next((path.name for path in sorted(folder.iterdir()) if path.name not in kept), None)
