"""What its owner has put into a model folder, which a new export of it must not lose."""

import shutil
from itertools import count
from pathlib import Path

from rmcli import output
from rmcli.model.hashes import CARD_FILE, HASHES_FILE, first_fault, listed_names, read_by_no_loader
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


def set_aside(folder: Path) -> None:
    """Rename an earlier export that a new one would take something away from, and say so: nothing of it is lost.

    That is a folder in it, a link, a file for loaders that no export wrote, or one that was changed by hand.
    Raises OSError.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    lost = lost_by_replacing(folder)
    fault = first_fault(folder, may_be_missing=listed_names(folder), may_be_added=lambda name: True)
    if lost is None and fault is None:
        return
    numbers = (folder.with_name(f"{folder.name}.before-{number}") for number in count(1))
    aside = next(place for place in numbers if not place.exists())
    folder.rename(aside)
    output.warn(f"{folder} is kept as {aside}: {fault if lost is None else f'{lost} in it was not exported'}")
