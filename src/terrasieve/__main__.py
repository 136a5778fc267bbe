"""``python -m terrasieve``, e.g. under torchrun."""

from terrasieve.cli import main

main()
