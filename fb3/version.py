"""The version, apart from `fb3/__init__.py`, so that no module imports the roof."""

__version__ = "0.1.0"
