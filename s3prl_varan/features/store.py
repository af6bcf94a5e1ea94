"""Append-only storage of arrays under content keys, for any number of processes without locks.

Each process that has something to store appends to a segment file of its own; everybody reads all
segments, memory-mapped. A record is a header of 128 bytes with its own checksum, then the array
with a checksum in the header, padded to 64 bytes. A process killed in mid-write leaves a short
tail that no reader takes for a record; damaged records are noticed and skipped.
"""

import hashlib
import logging
import mmap
import os
import secrets
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

logger = logging.getLogger(__name__)

MAGIC = b"S3VFEAT1"
# Magic, key, dtype, N, T, D, length, payload bytes, payload checksum.
HEADER = struct.Struct("<8s16s5IQ8s")
HEADER_BYTES, ALIGN = 128, 64  # aligned, so that an array can be a view of the file
DTYPES = (np.dtype("<f4"), np.dtype("<f2"))
SUFFIX = ".seg"
ABOUT = "store.json"  # beside the segments: what they hold


@dataclass(frozen=True)
class Record:
    """Where an array lies."""

    path: Path
    offset: int  # of the payload
    shape: tuple[int, int, int]
    dtype: np.dtype
    length: int  # valid frames
    size: int  # payload bytes
    checksum: bytes


class ArrayStore:
    """A folder of segments: arrays [N, T, D] with their number of valid frames.

    Keys are 16 bytes; arrays are float32 or float16.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.records: dict[bytes, Record] = {}
        self._scanned: dict[Path, int] = {}  # how far each segment has been read
        self._maps: dict[Path, mmap.mmap] = {}
        self._verified: set[Record] = set()
        self._own: int | None = None  # file descriptor of this process's segment
        name = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}"
        self._own_path = folder / f"{name}{SUFFIX}"
        self.refresh()

    def __len__(self) -> int:
        return len(self.records)

    def get(self, key: bytes) -> tuple[np.ndarray, int] | None:
        """The array (a read-only view of the file) and its valid frames.

        None where there is none, or none that is whole.
        """
        record = self.records.get(key)
        if record is None:
            return None
        data = self._payload(record)
        if data is None or (record not in self._verified and _checksum(data) != record.checksum):
            logger.warning(
                "cache: an entry in %s is damaged, it will be computed again", record.path
            )
            del self.records[key]
            return None
        self._verified.add(record)
        return np.frombuffer(data, record.dtype).reshape(record.shape), record.length

    def put(self, key: bytes, array: np.ndarray, length: int) -> None:
        """Append an array [N, T, D].

        OSError where the disk does not take it; nothing is left behind then.
        """
        array = np.ascontiguousarray(array)
        payload = array.reshape(-1).view(np.uint8).data
        fields = (DTYPES.index(array.dtype), *array.shape, length, len(payload), _checksum(payload))
        head = HEADER.pack(MAGIC, key, *fields)
        head = (head + _checksum(head)).ljust(HEADER_BYTES, b"\0")
        block = b"".join((head, payload, b"\0" * (-len(payload) % ALIGN)))
        if self._own is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._own = os.open(self._own_path, flags, 0o644)
        start = os.fstat(self._own).st_size
        try:
            written = 0
            while written < len(block):
                written += os.write(self._own, memoryview(block)[written:])
        except BaseException:
            os.ftruncate(self._own, start)
            raise
        self._scanned[self._own_path] = start + len(block)
        record = _parse(self._own_path, start, head)[0]
        assert record is not None
        self.records[key] = record

    def refresh(self) -> None:
        """Take up what other processes have stored since."""
        # In the order they were begun: the later record of a key stands.
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                if path.stat().st_size > self._scanned.get(path, 0):
                    self._scan(path)
            except FileNotFoundError:  # cleared meanwhile
                continue

    def verify(self) -> int:
        """Read every record; returns how many are damaged."""
        return sum(self.get(key) is None for key in list(self.records))

    def _scan(self, path: Path) -> None:
        """Index a segment from where it was last read up to its last whole record."""
        offset = self._scanned.get(path, 0)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            while offset + HEADER_BYTES <= size:
                file.seek(offset)
                record, key = _parse(path, offset, file.read(HEADER_BYTES))
                if record is None:
                    following = _next_header(file, offset + ALIGN, size)
                    if following is None:
                        break  # maybe still being written: look again next time
                    logger.warning(
                        "cache: %s is damaged at byte %d, what was there will be computed again",
                        path,
                        offset,
                    )
                    offset = following
                    continue
                end = record.offset + record.size + -record.size % ALIGN
                if end > size:
                    break
                self.records[key] = record
                offset = end
        self._scanned[path] = offset

    def _payload(self, record: Record) -> memoryview | None:
        end = record.offset + record.size
        mapped = self._maps.get(record.path)
        if mapped is None or len(mapped) < end:
            try:
                with open(record.path, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (FileNotFoundError, ValueError):  # cleared meanwhile, or emptied
                return None
            self._maps[record.path] = mapped
        return memoryview(mapped)[record.offset : end] if len(mapped) >= end else None


def _checksum(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def _parse(path: Path, offset: int, header: bytes) -> tuple[Record | None, bytes]:
    """The record that a header describes, None where it is no whole header, and its key."""
    packed, checksum = header[: HEADER.size], header[HEADER.size : HEADER.size + 8]
    if packed[: len(MAGIC)] != MAGIC or _checksum(packed) != checksum:
        return None, b""
    _, key, dtype, layers, frames, dim, length, size, payload_checksum = HEADER.unpack(packed)
    shape, start = (layers, frames, dim), offset + HEADER_BYTES
    return Record(path, start, shape, DTYPES[dtype], length, size, payload_checksum), key


def _next_header(file: BinaryIO, start: int, size: int) -> int | None:
    """Offset of the first whole header from `start` on."""
    for offset in range(start, size - HEADER_BYTES + 1, ALIGN):
        file.seek(offset)
        header = file.read(HEADER_BYTES)
        if header[: len(MAGIC)] == MAGIC and _parse(Path(), 0, header)[0] is not None:
            return offset
    return None


def used_bytes(folder: str | Path) -> int:
    """Bytes of all segments in a cache or in one of its stores."""
    total = 0
    for base, _, names in os.walk(folder):  # which, unlike rglob, passes over folders that go away
        for name in names:
            if name.endswith(SUFFIX):
                with suppress(FileNotFoundError):
                    total += os.path.getsize(os.path.join(base, name))
    return total


def readable_bytes(count: float) -> str:
    """12345678 -> '12.3 MB'."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
