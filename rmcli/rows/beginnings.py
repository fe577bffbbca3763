"""What the first bytes of a file say it is, where that is no text in UTF-8 as its ending promises."""

import re

from rmcli.errors import RmcliError
from rmcli.rows.files import open_bytes

_HEAD = 512  # bytes looked at
_UTF8 = "write it as UTF-8: iconv -f {encoding} -t UTF-8 IN > OUT, or save it as UTF-8 where it comes from"
_SIGNS = (
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "text in UTF-32", _UTF8.format(encoding="UTF-32")),
    (rb"\xff\xfe|\xfe\xff", "text in UTF-16", _UTF8.format(encoding="UTF-16")),
    (rb"[\t\n\r -~]\x00[\t\n\r -~]\x00", "text in UTF-16", _UTF8.format(encoding="UTF-16LE")),
    (rb"\x00[\t\n\r -~]\x00[\t\n\r -~]", "text in UTF-16", _UTF8.format(encoding="UTF-16BE")),
    (rb"\x1f\x8b", "compressed with gzip", "add .gz to its name"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd", "add .zst to its name"),
    (rb"PK\x03\x04", "a zip archive or a workbook", "unpack it, or save the sheet as CSV in UTF-8"),
    (rb"PAR1", "Parquet", "call it .parquet"),
    (rb"ARROW1", "Arrow", "call it .arrow"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the data", "fetch it: git lfs pull"),
    (rb"\s*<(!doctype html|html)", "a web page, not the data", "download the file itself"),
)


def sign_of(head: bytes) -> tuple[str, str] | None:
    """What a text file that begins so really is, and what helps; None where nothing speaks against it."""
    return next(((what, hint) for sign, what, hint in _SIGNS if re.match(sign, head, re.IGNORECASE)), None)


def check_is_text(name: str) -> None:
    """Raise RmcliError for a file that is something else than its ending says: no row of it could be read."""
    with open_bytes(name) as file:
        sign = sign_of(file.read(_HEAD))
    if sign is not None:
        raise RmcliError(f"source {name} is {sign[0]}", sign[1])
