"""The version. It stands apart from `fb3/__init__.py` so that a module can import it without the package's top."""

__version__ = "0.1.0"
