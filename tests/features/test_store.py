"""Storage of arrays: concurrent readers, killed writers, damaged and torn files, full disks."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from s3prl_varan.features.store import ALIGN, HEADER_BYTES, ArrayStore


def _array(index: int, frames: int = 3) -> np.ndarray:
    return np.random.default_rng(index).standard_normal((4, frames, 6)).astype("float32")


def _key(index: int) -> bytes:
    return index.to_bytes(16, "big")


def test_stored_arrays_come_back_to_every_reader(tmp_path):
    writer, reader = ArrayStore(tmp_path), ArrayStore(tmp_path)
    arrays = {
        index: _array(index, frames=index + 1).astype("f2" if index % 2 else "f4")
        for index in range(10)
    }
    for index, array in arrays.items():
        writer.put(_key(index), array, length=index + 1)
    reader.refresh()
    for store in (writer, reader, ArrayStore(tmp_path)):
        assert len(store) == 10 and store.verify() == 0
        for index, array in arrays.items():
            found, length = store.get(_key(index))
            assert found.dtype == array.dtype and length == index + 1
            np.testing.assert_array_equal(found, array)
    assert reader.get(_key(99)) is None


def test_a_segment_cut_anywhere_loses_only_the_last_record(tmp_path):
    whole = ArrayStore(tmp_path / "whole")
    for index in range(3):
        whole.put(_key(index), _array(index), 3)
    content = next((tmp_path / "whole").glob("*.seg")).read_bytes()
    last = len(content) // 3 * 2
    payload = _array(0).nbytes
    for cut in (
        last,
        last + 1,
        last + HEADER_BYTES - 1,
        last + HEADER_BYTES,
        last + HEADER_BYTES + payload - 1,
        len(content) - 1,
    ):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "a.seg").write_bytes(content[:cut])
        store = ArrayStore(folder)
        assert sorted(store.records) == [_key(0), _key(1)] and store.verify() == 0
        with open(folder / "a.seg", "ab") as file:  # the rest arrives: a writer that was only slow
            file.write(content[cut:])
        store.refresh()
        assert len(store) == 3 and store.verify() == 0


@pytest.mark.parametrize("where", ["magic", "shape", "payload"])
def test_a_damaged_record_is_skipped_and_replaced(tmp_path, where, caplog):
    store = ArrayStore(tmp_path)
    for index in range(3):
        store.put(_key(index), _array(index), 3)
    path = next(tmp_path.glob("*.seg"))
    content = bytearray(path.read_bytes())
    stride = len(content) // 3
    content[stride + {"magic": 2, "shape": 30, "payload": HEADER_BYTES + 50}[where]] ^= 0xFF
    path.write_bytes(content)
    store = ArrayStore(tmp_path)
    assert store.get(_key(1)) is None and "damaged" in caplog.text
    np.testing.assert_array_equal(store.get(_key(2))[0], _array(2))  # what follows is found again
    store.put(_key(1), _array(1), 3)
    fresh = ArrayStore(tmp_path)
    assert fresh.verify() == 0 and len(fresh) == 3
    np.testing.assert_array_equal(fresh.get(_key(1))[0], _array(1))


def _write_forever(folder: Path) -> None:
    store = ArrayStore(folder)
    for index in range(10**9):
        store.put(_key(index), _array(index, frames=2000), 2000)


def test_a_writer_killed_at_any_moment_leaves_whole_records(tmp_path):
    context = multiprocessing.get_context("fork")
    for attempt in range(4):
        writer = context.Process(target=_write_forever, args=(tmp_path,), daemon=True)
        writer.start()
        deadline = time.monotonic() + 20
        while (
            not any(path.stat().st_size > 10**6 for path in tmp_path.glob("*.seg"))
            and time.monotonic() < deadline
        ):
            time.sleep(0.002)
        time.sleep(0.003 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        store = ArrayStore(tmp_path)
        assert len(store) > 0
        for key in list(store.records):
            np.testing.assert_array_equal(
                store.get(key)[0], _array(int.from_bytes(key, "big"), frames=2000)
            )
        for path in tmp_path.glob("*.seg"):
            path.unlink()


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    store = ArrayStore(tmp_path)
    store.put(_key(0), _array(0), 3)
    size = store._own_path.stat().st_size
    real = os.write

    def fills_up(fd, data):
        real(fd, bytes(data)[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("s3prl_varan.features.store.os.write", fills_up)
    with pytest.raises(OSError, match="No space"):
        store.put(_key(1), _array(1), 3)
    monkeypatch.undo()
    assert store._own_path.stat().st_size == size
    store.put(_key(2), _array(2), 3)
    fresh = ArrayStore(tmp_path)
    assert sorted(fresh.records) == [_key(0), _key(2)] and fresh.verify() == 0


def test_records_are_aligned_for_views(tmp_path):
    store = ArrayStore(tmp_path)
    for index in range(3):
        store.put(_key(index), _array(index, frames=index + 1), 1)
        assert store.records[_key(index)].offset % ALIGN == 0
