"""Memory: the peak of a step. On the CPU in a process of its own, since a process's peak never falls.

Run by ``run`` as ``python -m terrasieve.bench.memory``, with the contender as JSON on the command line.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from terrasieve.bench.contenders import Run, Setup

STEPS = 2  # AdamW's moments appear in the first
HOW = {
    "cpu": f"growth of resident memory over {STEPS} steps, weights included, in a fresh process",
    "cuda": "torch.cuda.max_memory_allocated of a step less what stood there before, weights included",
}


def cpu_peak_mb(name: str, setup: Setup, threads: int) -> float:
    """Measure how far a fresh process's resident memory grows, in MB (10^6 bytes), weights included.

    Raises:
        RuntimeError: if that process fails; its last words are given.
    """
    order = json.dumps({"name": name, "setup": asdict(setup), "threads": threads})
    done = subprocess.run([sys.executable, "-m", __name__, order], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring memory of {name} failed ({done.returncode}): {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def high_water_kb() -> int:
    """Return this process's peak resident memory; getrusage would give the parent's if that was higher."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def _main(order: str) -> None:
    given = json.loads(order)
    torch.set_num_threads(given["threads"])
    before = high_water_kb()
    run = Run(given["name"], Setup(**given["setup"]))
    for _ in range(STEPS):
        run.step()
    sys.stdout.write(f"{(high_water_kb() - before) * 1024 / 1e6}\n")


if __name__ == "__main__":
    _main(sys.argv[1])
