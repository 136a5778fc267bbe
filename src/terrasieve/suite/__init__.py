"""Suite: one encoder on many tasks under the papers' protocols, in one table beside the published figures."""
