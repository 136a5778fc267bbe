"""Curate: from folders of images to a manifest that says of each what it is and why it is kept."""
