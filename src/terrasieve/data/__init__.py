"""Data: from a manifest's rows to batches on the device."""
