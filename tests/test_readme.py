"""README names every file of the package, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_has_its_line() -> None:
    source = ROOT / "src" / "terrasieve"
    missing = [
        name for path in source.rglob("*.py") if f"| `{(name := str(path.relative_to(source)))}` |" not in README
    ]
    assert not missing
    named = re.findall(r"^\| `([\w/]+\.py)` \|", README, re.MULTILINE)
    assert not [name for name in named if not (source / name).exists()]


def test_pictures_and_links_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_nothing_names_this_machine_or_a_registry() -> None:
    import subprocess

    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        return
    banned = ("/work/" + "main", "/root" + "/", "pypi" + ".org", "python" + "hosted", "registry.npm" + "js")
    for name in tracked.stdout.split():
        if (ROOT / name).suffix in {".py", ".md", ".toml", ".yaml", ".json", ".cff", ".j2", ""}:
            text = (ROOT / name).read_text(encoding="utf-8", errors="ignore")
            assert not [word for word in banned if word in text], name
