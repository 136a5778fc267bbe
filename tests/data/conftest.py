"""Small copies of public data sets, written once; a test that changes one copies it first."""

from __future__ import annotations

import pytest
from copies_of_sets import WRITERS, Copies


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    """One copy of each data set, named as $TERRASIEVE_DATA has it."""
    top = tmp_path_factory.mktemp("sets")
    return {name: (top / name, write(top / name)) for name, write in WRITERS.items()}
