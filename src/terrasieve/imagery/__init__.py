"""Imagery: sensors' bands, windowed decoding, footprints and a procedural Earth."""
