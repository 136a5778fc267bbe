"""The manifest: the contract between curation and training, one GeoParquet row per image or window.

Written by ``curate.scan`` (and later steps), read by ``data.samples`` and ``evaluate``. Every row keeps why it was kept
or dropped. The file opens in GeoPandas, DuckDB and QGIS. Names follow STAC where STAC has one.
"""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = "1"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # stable: 16 hex digits of a hash of uri and window
        ("uri", pa.string()),  # absolute path or URL of the file that holds the pixels
        ("window", pa.list_(pa.int32(), 4)),  # x, y, width, height in pixels of the file; null = the whole file
        ("width", pa.int32()),  # pixels of this row's image or window
        ("height", pa.int32()),
        ("bands", pa.list_(pa.string())),  # names in file order; "band_1", ... where unknown
        ("dtype", pa.string()),  # numpy name: uint8, uint16, int16, float32, ...
        ("nodata", pa.float64()),  # no-data value of the file, null when none is declared
        ("sensor", pa.string()),
        ("gsd_m", pa.float64()),  # ground sample distance in metres
        ("datetime", pa.timestamp("us", tz="UTC")),
        ("geometry", pa.binary()),  # WKB footprint, EPSG:4326, null without coordinates
        ("lon", pa.float64()),  # footprint centre, EPSG:4326 degrees, null when unknown
        ("lat", pa.float64()),
        ("crs", pa.string()),  # of the file, "EPSG:32721" or WKT
        ("source", pa.string()),  # name of the collection that the image comes from
        ("licence", pa.string()),
        ("split", pa.string()),  # train, val, test or null
        ("label", pa.string()),  # class of a multi-class task
        ("labels", pa.list_(pa.string())),  # classes of a multi-label task
        ("phash", pa.uint64()),  # written by curation
        ("group", pa.int64()),  # duplicates and same-site images share a group
        ("keep", pa.bool_()),
        ("reason", pa.string()),  # why a row is not kept; empty when it is
    ]
)
