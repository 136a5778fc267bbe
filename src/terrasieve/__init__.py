"""terrasieve: Earth-observation imagery in, foundation model out, at a fraction of the usual compute."""

__version__ = "0.1.0"
