"""WorkerProcess: what a start that fails leaves behind."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lume_diff.processes.worker_process import WorkerProcess


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_a_host_that_cannot_be_sent_leaves_no_file_open(tmp_path: Path) -> None:
    lock = threading.Lock()
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(TypeError, match="cannot pickle"):
            WorkerProcess(lambda: lock, {}, str(tmp_path))
    assert set(os.listdir("/proc/self/fd")) == before
