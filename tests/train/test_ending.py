"""The end of a run of several processes: all of them end, however late the threads of gloo let go of their tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PART = """
from pathlib import Path
import torch
from terrasieve.train import distributed
from terrasieve.train.settings import LoopSettings

def threads_of_gloo():
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]

settings = LoopSettings.model_construct(device="cpu", batch_size=2, accumulate=1, compile="off", parallel="ddp")
with distributed.join(settings) as world:
    model = distributed.spread(torch.nn.Linear(4, 4), settings, world)
    model(torch.ones(2, 4)).sum().backward()
    distributed.gathered(world, [world.rank])
    assert threads_of_gloo()
assert not threads_of_gloo()  # though the model is still held
"""


@pytest.mark.slow
def test_processes_end(tmp_path: Path) -> None:
    """What is left of the group is torn down by ``join``, not by whoever holds the model last, with the lock held."""
    (tmp_path / "part.py").write_text(PART)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    done = subprocess.run(
        [*command, "--rdzv-endpoint", "127.0.0.1:0", str(tmp_path / "part.py")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
