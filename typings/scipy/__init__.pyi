"""The part of SciPy that qcc uses, with types: the package has none of its own."""
