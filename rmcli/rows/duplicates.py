"""Which groups have been seen before, and where: 24 bytes for each, whatever their text."""

KEY_BYTES = 16
_BUCKET_BYTES = 2  # of the key; 65,536 buckets keep each short enough to be searched at once
_FILE_BYTES, _LINE_BYTES = 4, 6
_ENTRY = KEY_BYTES - _BUCKET_BYTES + _FILE_BYTES + _LINE_BYTES


class Seen:
    """Keys of 16 bytes with the file and line they were first met at.

    A Python set of such keys takes some 130 bytes for each; ten million here take a quarter of a gigabyte.
    """

    def __init__(self) -> None:
        self._buckets: dict[bytes, bytearray] = {}
        self._files: list[str] = []
        self._file_numbers: dict[str, int] = {}

    def find(self, key: bytes) -> str | None:
        """`file:line` of the key's first place; None when it is new."""
        bucket = self._buckets.get(key[:_BUCKET_BYTES], bytearray())
        start = self._position(bucket, key)
        if start is None:
            return None
        file_at = start + KEY_BYTES - _BUCKET_BYTES
        line_at = file_at + _FILE_BYTES
        file = self._files[int.from_bytes(bucket[file_at:line_at], "big")]
        return f"{file}:{int.from_bytes(bucket[line_at : line_at + _LINE_BYTES], 'big')}"

    def add(self, key: bytes, file: str, line: int) -> None:
        """Note a key that `find` does not know."""
        number = self._file_numbers.setdefault(file, len(self._files))
        if number == len(self._files):
            self._files.append(file)
        place = number.to_bytes(_FILE_BYTES, "big") + line.to_bytes(_LINE_BYTES, "big")
        self._buckets.setdefault(key[:_BUCKET_BYTES], bytearray()).extend(key[_BUCKET_BYTES:] + place)

    def discard(self, key: bytes) -> None:
        """Forget a key, if it is known."""
        bucket = self._buckets.get(key[:_BUCKET_BYTES], bytearray())
        start = self._position(bucket, key)
        if start is not None:
            del bucket[start : start + _ENTRY]

    @staticmethod
    def _position(bucket: bytearray, key: bytes) -> int | None:
        start = bucket.find(key[_BUCKET_BYTES:])
        while start >= 0 and start % _ENTRY:  # across two entries: no key
            start = bucket.find(key[_BUCKET_BYTES:], start + 1)
        return start if start >= 0 else None
