"""The bearer token that clients must send: from a file or the environment, never from the command line."""

import hmac
import os
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from rmcli import output
from rmcli.errors import ConfigError

VARIABLE = "RMCLI_SERVE_TOKEN"


def read_token(file: Path | None) -> str | None:
    """The token of the file, else of the environment; None where there is none. Raises ConfigError for no token."""
    if file is not None:
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file {file}: {error}", "give a text file that holds the token") from None
        where = f"--token-file {file}"
    elif VARIABLE in os.environ:
        token, where = os.environ[VARIABLE].strip(), VARIABLE
    else:
        return None
    if not token or not token.isascii() or any(character.isspace() for character in token):
        raise ConfigError(
            f"{where} holds no token: one word of ASCII characters", "make one: openssl rand -hex 32 > token"
        )
    return token


def check_host(host: str, token: str | None, no_token: bool) -> None:
    """Raise ConfigError for a server that other machines reach without a token; where that is meant, say so."""
    if token is not None or _is_local(host):
        return
    if no_token:
        output.warn(f"no token: whoever reaches {host} may score")
    else:
        raise ConfigError(
            f"--host {host} lets other machines score, and there is no token",
            f"give --token-file FILE or set {VARIABLE}; for clients that send none: --no-token",
        )


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_right(token: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request has the token, in a time that tells nothing of it."""
    given = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, _, word = given.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(word.strip(), token.encode("ascii"))
