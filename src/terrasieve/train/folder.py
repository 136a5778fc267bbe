"""The run folder: made once, held by one process at a time, and told where it came from.

``recipe.yaml  environment.json  log.jsonl  events  pictures/  checkpoints/  weights.safetensors  scores.json
report.html``
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from terrasieve.curate.engine import cores
from terrasieve.files import held, written_aside

__all__ = ["environment", "hardware", "held", "write_json"]

PACKAGES = ("terrasieve", "torch", "torchvision", "timm", "numpy", "rasterio", "pyarrow", "lightly")


def environment(**more: Any) -> dict[str, Any]:
    """Describe where a run happens: commit, versions, hardware, command; ``more`` is added."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "commit": _commit(),
        "versions": versions,
        "hardware": hardware(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }


def hardware() -> str:
    """Name the device, e.g. ``AMD EPYC, 2 cores, avx512 bf16`` or ``NVIDIA H200``."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {cores()} cores, {torch.backends.cpu.get_cpu_capability()}"


def write_json(path: Path, content: Any) -> None:
    """Write JSON aside, then rename it."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _commit() -> str | None:
    """Return the commit of the checkout that this code runs from, with ``+`` when it was changed since."""
    here = str(Path(__file__).parent)
    try:
        git = ["git", "-C", here]
        if subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True).returncode:
            return None  # installed, or beside some other repository
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")
