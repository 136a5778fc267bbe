"""A recipe of ``terrasieve adapt`` that trains in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from terrasieve import recipe
from terrasieve.recipe import AdaptRecipe


@pytest.fixture(scope="session")
def small(small_manifest: Path) -> Callable[..., AdaptRecipe]:
    """Make it; keyword arguments replace top-level keys."""

    def make(**changes: Any) -> AdaptRecipe:
        content: dict[str, Any] = {
            "task": {"data": f"manifest:{small_manifest}"},
            "steps": 4,
            "batch_size": 4,
            "precision": "fp32",
            "image": {"size_px": 32},
            "encoder": {"name": "vit_tiny_patch16_224", "patch_px": 8, "depth": 2},
            "method": {"name": "rvit"},
            "loader": {"workers": 0},
            "log": {"every": 2, "picture_every": 0, "checkpoint_every": 2},
            "validate_every": 2,
        }
        return recipe.check(content | changes, "test", AdaptRecipe)

    return make
