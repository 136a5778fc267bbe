"""A procedural Earth: imagery of an invented planet with exact ground truth, the data of the demo and of the tests.

Stands in ``imagery``, before the manifest. In the order of the flow: grid, planet, terrain, materials, cover, farms,
sites, surface, objects, draw, atmosphere; ``chip`` puts them together, ``sampling`` draws places, ``write`` makes
files, ``sheets`` makes contact sheets. The first call compiles the kernels (about 20 s, cached on disk).
"""

from terrasieve.imagery.earth.chip import RGB, SCENES, Box, Chip, Place, render
from terrasieve.imagery.earth.materials import BANDS, LAND_COVER
from terrasieve.imagery.earth.sampling import sample_place, sample_places
from terrasieve.imagery.earth.write import split_of, write_chips

__all__ = [
    "BANDS",
    "LAND_COVER",
    "RGB",
    "SCENES",
    "Box",
    "Chip",
    "Place",
    "render",
    "sample_place",
    "sample_places",
    "split_of",
    "write_chips",
]
