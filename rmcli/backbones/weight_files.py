"""A model's weight files, in a folder or on the Hub, read in pieces: by seeking, or by HTTP range requests."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rmcli.errors import RmcliError

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
NUM_CONNECTIONS = 8
TIMEOUT_SECONDS = 30
MAX_RETRIES = 2


class RowsUnavailableError(RmcliError):
    """No weights at hand, or no way to read a part of them: nothing is damaged, there is just nothing to look at."""


# --- where bytes come from ---


class ByteSource(Protocol):
    """A file, here or on a server, that is read in pieces."""

    name: str
    num_connections: int

    def read(self, start: int, length: int) -> bytes:
        """At most `length` bytes from `start`; fewer where the file ends."""
        ...


class LocalFile:
    num_connections = 1

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def read(self, start: int, length: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise RmcliError(f"{self.path} cannot be read: {error.strerror or error}") from error


class RemoteFile:
    """A file of a Hub repository, read by HTTP range requests with the Hub's own client, headers and retries."""

    num_connections = NUM_CONNECTIONS

    def __init__(self, repository: str, file: str, revision: str | None) -> None:
        from huggingface_hub import hf_hub_url

        self.name = f"{repository}/{file}"
        self.url = hf_hub_url(repository, file, revision=revision)

    def read(self, start: int, length: int) -> bytes:
        status, data = self._get({"Range": f"bytes={start}-{start + length - 1}"})
        self._need_partial(status)
        return data

    def read_whole(self) -> bytes:
        return self._get({})[1]

    def probe(self) -> None:
        """Ask for one byte and read none: whether the file is there, and its server answers range requests."""
        from huggingface_hub.utils import http_stream_backoff

        with (
            self._errors(),
            http_stream_backoff("GET", **self._request({"Range": "bytes=0-0"})) as response,
        ):
            self._refuse(response.status_code)
            self._need_partial(response.status_code)

    def _get(self, headers: dict[str, str]) -> tuple[int, bytes]:
        from huggingface_hub.utils import http_backoff

        with self._errors():
            response = http_backoff("GET", **self._request(headers))
            self._refuse(response.status_code)
            return response.status_code, response.content

    def _request(self, headers: dict[str, str]) -> dict[str, Any]:
        from huggingface_hub.utils import build_hf_headers

        wanted = {**build_hf_headers(), "Accept-Encoding": "identity", **headers}
        return {"url": self.url, "headers": wanted, "timeout": TIMEOUT_SECONDS, "max_retries": MAX_RETRIES}

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from huggingface_hub import errors

        try:
            yield
        except errors.OfflineModeIsEnabled as error:
            raise RowsUnavailableError(f"{self.name}: the Hub cannot be reached and its cache has no copy") from error
        except errors.HTTPError as error:  # pyright: ignore[reportPrivateImportUsage]  whichever client it ships
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RowsUnavailableError(f"{self.name} cannot be fetched: {reason}") from error

    def _need_partial(self, status: int) -> None:
        if status != 206:
            raise RowsUnavailableError(
                f"{self.name}: the server does not answer range requests (status {status}), and the whole file is "
                "not downloaded for a few rows",
                "download the model and give its folder",
            )

    def _refuse(self, status: int) -> None:
        if status in (401, 403):
            raise RowsUnavailableError(
                f"{self.name}: access refused (status {status})",
                "accept the model's terms on its page and log in: hf auth login",
            )
        if status == 404:
            raise MissingFileError(f"{self.name}: no such file (status 404)")
        if status == 416:
            raise RmcliError(f"{self.name} is damaged: it ends before its rows do", "download it again")
        if status >= 400:
            raise RowsUnavailableError(f"{self.name} cannot be fetched: status {status}")


class MissingFileError(RowsUnavailableError):
    """One file is not in its repository; another may be."""


# --- which file holds the embedding ---


class Files(Protocol):
    name: str

    def find(self, file: str) -> ByteSource | None: ...
    def read_json(self, file: str) -> Any: ...
    def local_path(self, file: str) -> Path: ...


class Folder:
    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, str(folder)

    def find(self, file: str) -> ByteSource | None:
        return LocalFile(self.folder / file) if (self.folder / file).is_file() else None

    def read_json(self, file: str) -> Any:
        return _parse_json((self.folder / file).read_bytes(), str(self.folder / file))

    def local_path(self, file: str) -> Path:
        return self.folder / file


class HubFiles:
    """Files of a Hub repository: from the cache where they are there, else from the server."""

    def __init__(self, repository: str, revision: str | None) -> None:
        self.name, self.revision = repository, revision

    def find(self, file: str) -> ByteSource | None:
        cached = self._cached(file)
        if cached is not None:
            return LocalFile(cached)
        remote = RemoteFile(self.name, file, self.revision)
        try:
            remote.probe()
        except MissingFileError:
            return None
        return remote

    def read_json(self, file: str) -> Any:
        cached = self._cached(file)
        if cached is not None:
            return _parse_json(cached.read_bytes(), str(cached))
        remote = RemoteFile(self.name, file, self.revision)
        return _parse_json(remote.read_whole(), remote.name)

    def local_path(self, file: str) -> Path:
        cached = self._cached(file)
        if cached is None:
            raise RowsUnavailableError(
                f"{self.name} has its weights in {file}, of which no part can be read over the network",
                f"download it first: hf download {self.name}",
            )
        return cached

    def _cached(self, file: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, file, revision=self.revision)
        return Path(found) if isinstance(found, str) else None


def _parse_json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RmcliError(f"{name} is damaged: {error}", "download it again") from error
