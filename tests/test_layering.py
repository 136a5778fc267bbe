"""The direction of imports and the sizes of files and functions: DESIGN.md, section 1."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "terrasieve"
ORDER = [
    *(
        "errors",
        "section",
        "files",
        "remote",
        "settings_file",
        "keyed",
        "batch",
        "boxes",
        "imagery",
        "manifest",
        "sieve",
        "data",
        "curate",
        "nn",
        "methods",
        "train",
    ),
    *(
        "evaluate",
        "report",
        "scenes",
        "entries",
        "export",
        "bench",
        "recipe",
        "pretrain",
        "opened",
        "assess",
        "adapt",
        "predict",
        "predict_scene",
        "analyse",
        "embedding",
        "searching",
        "subsets",
        "mapping",
        "cataloguing",
        "display",
        "sweep",
        "study",
        "suite",
        "watch",
        "demo",
        "training",
        "commands",
        "cli",
        "__main__",
    ),
]
FILES = sorted(SOURCE.rglob("*.py"))
BANNED = {"utils", "common", "misc", "helpers", "base", "manager"}


def package(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("terrasieve"):
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("terrasieve.")}
    return names - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way_and_files_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    name = package(path)
    if name != "__init__":
        assert name in ORDER, f"{name} has no place in the order of imports"
        later = {other for other in imported(tree) if ORDER.index(other) > ORDER.index(name)}
        assert not later, f"{path} imports {later}, which stand after {name}"
    assert text.count("\n") < 300
    assert ast.get_docstring(tree), "the first docstring says what the file is for"
    assert not BANNED & set(path.relative_to(SOURCE).with_suffix("").parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
            assert length < 50, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_randomness_begins_in_keyed_alone() -> None:
    banned = (
        "torch.manual_seed",
        "np.random.seed",
        "np.random.default_rng",
        "import random",
        "multinomial",
        "masked_select",
    )
    for path in FILES:
        if path.name != "keyed.py":
            found = [word for word in banned if word in path.read_text(encoding="utf-8")]
            assert not found, f"{path}: {found}"
