"""Scenes: rasters larger than any image that a network sees, from windows of them to one seamless map."""
