"""Bench: what a training step costs, against other methods, other libraries and the hardware's own peak.

After ``train``, whose step it times unchanged; nothing depends on it but the command line. ``contenders`` names what is
compared, ``yardsticks`` holds the models of other libraries, ``run`` measures, ``page`` writes JSON and Markdown,
``loading`` sets the loader's rate against the model's; ``ragged`` measures what dropping patches saves. Needs no raster
library, so it runs where only torch, timm and numpy are installed.
"""

from terrasieve.bench.contenders import CONTENDERS, ENCODERS
from terrasieve.bench.loading import measure_loading
from terrasieve.bench.page import write
from terrasieve.bench.ragged import run_ragged
from terrasieve.bench.ragged import write as write_ragged
from terrasieve.bench.run import run_bench

__all__ = ["CONTENDERS", "ENCODERS", "measure_loading", "run_bench", "run_ragged", "write", "write_ragged"]
