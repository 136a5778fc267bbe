"""Sphere: how large the Earth is where it counts as a sphere.

Imports nothing, so that anything may import it. Source: the mean radius of the IUGG (Moritz, "Geodetic Reference System
1980").
"""

EARTH_RADIUS_M = 6371008.8
EARTH_RADIUS_KM = EARTH_RADIUS_M / 1000
