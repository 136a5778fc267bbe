"""Footprints, pixel sizes, distances and the Hilbert order, against pyproj, shapely and counting."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod, Transformer

from terrasieve.imagery import geo

WGS84 = Geod(ellps="WGS84")
PLACES = {  # name: (crs, transform, width, height)
    "utm": ("EPSG:32721", (10.0, 0, 300_000, 0, -10.0, 6_200_000), 1098, 1098),
    "utm chip": ("EPSG:32721", (10.0, 0, 302_560, 0, -10.0, 6_173_780), 32, 32),
    "degrees": ("EPSG:4326", (0.01, 0, 10.0, 0, -0.01, 50.0), 300, 200),
    "other datum": ("EPSG:4267", (0.01, 0, -100.0, 0, -0.01, 40.0), 300, 200),
    "web mercator": ("EPSG:3857", (4.0, 0, -1_000_000, 0, -4.0, 7_000_000), 500, 500),
    "rotated": ("EPSG:32633", (8.0, 6.0, 500_000, 6.0, -8.0, 5_000_000), 400, 300),
    "lambert": ("EPSG:2154", (100.0, 0, 100_000, 0, -100.0, 7_100_000), 9000, 9000),
    "antimeridian, utm 60": ("EPSG:32760", (10.0, 0, 799_000, 0, -10.0, 8_200_000), 5490, 1098),
    "antimeridian, utm 1": ("EPSG:32601", (10.0, 0, 340_000, 0, -10.0, 7_500_000), 5490, 5490),
    "antimeridian, degrees": ("EPSG:4326", (0.01, 0, 179.0, 0, -0.01, 10.0), 200, 100),
    "antimeridian, mercator": ("EPSG:3857", (100.0, 0, 19_900_000, 0, -100.0, 500_000), 3000, 1000),
    "0 to 360": ("EPSG:4326", (1.0, 0, 0.0, 0, -1.0, 80.0), 360, 160),
    "globe": ("EPSG:4326", (0.5, 0, -180.0, 0, -0.5, 90.0), 720, 360),
    "north pole": ("EPSG:3413", (1000.0, 0, -2_000_000, 0, -1000.0, 1_500_000), 3500, 3200),
    "south pole": ("EPSG:3031", (1000.0, 0, -1_000_000, 0, -1000.0, 900_000), 2000, 1700),
    "beside the pole": ("EPSG:3031", (6.0, 0, -2_400_000, 0, -6.0, 1_300_000), 512, 512),
    "beside the pole, across the antimeridian": ("EPSG:3413", (500.0, 0, -900_000, 0, -500.0, 900_000), 1000, 500),
}


def lonlat(crs, transform, columns, rows):
    a, b, c, d, e, f = transform
    x, y = a * columns + b * rows + c, d * columns + e * rows + f
    if crs != "EPSG:4326":
        x, y = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    return (x + 180) % 360 - 180, y


@pytest.mark.parametrize("name", PLACES)
def test_a_footprint_holds_what_the_image_holds_and_nothing_else(name):
    crs, transform, width, height = PLACES[name]
    shape = geo.footprint(transform, crs, width, height)
    assert shape is not None and shape.is_valid and shape.geom_type in ("Polygon", "MultiPolygon")
    west, south, east, north = shape.bounds
    assert west >= -180 and east <= 180 and south >= -90 and north <= 90
    random = np.random.default_rng(7)
    inside = lonlat(
        crs, transform, random.uniform(0.002, 0.998, 400) * width, random.uniform(0.002, 0.998, 400) * height
    )
    assert shapely.contains_xy(shape, *inside).all()
    if name in ("0 to 360", "globe"):
        return
    along, beyond = random.uniform(0, 1, 100), random.uniform(0.01, 0.1, 100)
    for columns, rows in ((along, 1 + beyond), (along, -beyond), (1 + beyond, along), (-beyond, along)):
        outside = lonlat(crs, transform, columns * width, rows * height)
        assert not shapely.contains_xy(shape, *outside).any()


@pytest.mark.parametrize("name", PLACES)
def test_pixel_sizes_and_centres(name):
    crs, transform, width, height = PLACES[name]
    lon, lat = geo.centre(transform, crs, width, height)
    expected = lonlat(crs, transform, np.array(width / 2), np.array(height / 2))
    assert lon == pytest.approx(float(expected[0]), abs=1e-9) and lat == pytest.approx(float(expected[1]), abs=1e-9)
    ring = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]) + np.array([width / 2, height / 2])
    area_m2, _ = WGS84.polygon_area_perimeter(*lonlat(crs, transform, ring[:, 0], ring[:, 1]))
    assert geo.gsd_m(transform, crs, width, height) == pytest.approx(abs(area_m2) ** 0.5, rel=0.05)


def test_pixel_sizes_that_are_known():
    assert geo.gsd_m((10.0, 0, 5e5, 0, -10.0, 6e6), "EPSG:32633", 100, 100) == 10.0  # not 9.996, its true scale
    x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(20, 60)
    assert geo.gsd_m((10.0, 0, x, 0, -10.0, y), "EPSG:3857", 2, 2) == pytest.approx(5.0, rel=0.005)
    assert geo.gsd_m((2.0, 0, 9.8e5, 0, -2.0, 2e5), "EPSG:2263", 100, 100) == pytest.approx(0.6096, abs=1e-5)  # US feet
    degree = geo.gsd_m((0.001, 0, 0, 0, -0.001, 0), "EPSG:4326", 10, 10)
    assert degree == pytest.approx((111.3195 * 110.574) ** 0.5, rel=1e-4)


def test_cuts_at_the_antimeridian_meet_there():
    for name in ("antimeridian, utm 60", "antimeridian, utm 1", "antimeridian, degrees", "antimeridian, mercator"):
        crs, transform, width, height = PLACES[name]
        shape = geo.footprint(transform, crs, width, height)
        assert shape.geom_type == "MultiPolygon" and shape.bounds[0] == -180 and shape.bounds[2] == 180
        assert all(part.bounds[2] - part.bounds[0] < 10 for part in shape.geoms)
    assert geo.footprint(*_of("globe")).equals(shapely.box(-180, -90, 180, 90))
    assert geo.footprint(*_of("0 to 360")).area == pytest.approx(360 * 160)
    assert geo.footprint(*_of("degrees")).equals(shapely.box(10, 48, 13, 50))
    assert shapely.get_num_coordinates(geo.footprint(*_of("utm chip"))) == 5  # straight edges stay four corners


def _of(name):
    crs, transform, width, height = PLACES[name]
    return transform, crs, width, height


def test_a_pole_belongs_to_the_image_around_it():
    north, south = geo.footprint(*_of("north pole")), geo.footprint(*_of("south pole"))
    assert north.bounds[::2] == (-180, 180) and north.bounds[3] == 90 and south.bounds[1] == -90
    assert abs(WGS84.geometry_area_perimeter(south)[0]) == pytest.approx(2000e3 * 1700e3, rel=0.08)


def test_places_that_are_not_on_earth_have_no_footprint():
    local = 'LOCAL_CS["somewhere",UNIT["metre",1]]'
    for crs, x in ((local, 0), ("EPSG:32633", 1e12), ("nonsense", 0)):
        place = ((1.0, 0, x, 0, -1.0, x), crs, 10, 10)
        assert geo.footprint(*place) is None and geo.centre(*place) is None
        assert geo.gsd_m(*place) == (1.0 if crs == "EPSG:32633" else None)


def test_distances_are_those_of_a_sphere():
    random = np.random.default_rng(3)
    lon1, lon2 = random.uniform(-180, 180, (2, 500))
    lat1, lat2 = random.uniform(-90, 90, (2, 500))
    sphere = Geod(a=6_371_008.8, b=6_371_008.8)
    expected = sphere.inv(lon1, lat1, lon2, lat2)[2] / 1000
    assert np.allclose(geo.haversine_km(lon1, lat1, lon2, lat2), expected, rtol=1e-9, atol=1e-6)
    assert geo.haversine_km(0, 0, [180, 0], [0, 90]) == pytest.approx([20015.114, 10007.557], abs=1e-3)


@given(st.integers(1, 6))
def test_hilbert_order_visits_each_cell_once_and_steps_to_a_neighbour(bits):
    side = 1 << bits
    row, column = np.divmod(np.arange(side * side), side)
    lon, lat = (column + 0.5) / side * 360 - 180, (row + 0.5) / side * 180 - 90
    keys = geo.hilbert_order(lon, lat, bits)
    assert keys.dtype == np.int64 and np.array_equal(np.sort(keys), np.arange(side * side))
    path = np.stack([row, column], 1)[np.argsort(keys)]
    assert (np.abs(np.diff(path, axis=0)).sum(axis=1) == 1).all()


def test_hilbert_order_wraps_and_bounds():
    assert np.array_equal(geo.hilbert_order([190, 180], [0, 90]), geo.hilbert_order([-170, -180], [0, 90]))
    assert 0 <= geo.hilbert_order([179.999999], [90], bits=31)[0] < 4**31
