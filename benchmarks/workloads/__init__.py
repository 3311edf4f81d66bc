"""Real networks with their inputs and measures of quality, all from PyPI packages and seeds."""
