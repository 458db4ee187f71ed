"""A writer that is killed costs no earlier file."""
from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from wsld_plugin.checkpoints import remove_parts, write_atomically


def test_what_was_there_outlives_a_killed_writer(tmp_path: Path) -> None:
    path, large = tmp_path / 'epoch_1.pth', bytes(2**28)
    write_atomically(path, b'old')
    writer = multiprocessing.get_context('fork').Process(
        target=write_atomically, args=(path, large))
    writer.start()
    while not (parts := list(tmp_path.glob('*.part'))):
        time.sleep(1e-4)
    writer.kill()
    writer.join()
    assert path.read_bytes() == b'old'
    assert 0 <= parts[0].stat().st_size < len(large)
    remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, b'new')
    assert path.read_bytes() == b'new'
