"""Copied into a rehearsal as sitecustomize.py: its interpreter then imports only modules that the image would have.

It must not import fb3, because the rehearsal is of the packed fb3. FB3_GUARD names a JSON file: modules (allowed
top-level names), bundle (its folder), log (a file that takes the refused names), sockets (true to block them here).
"""

import importlib.machinery
import json
import os
import sys
from pathlib import Path

_INSTALLED = "fb3-wheels-"  # part of the name of the folder into which the notebook installs the bundle's wheels
_STDLIB = str(Path(os.__file__).parent)  # also holds modules that sys.stdlib_module_names lacks


class GuardedFinder:
    """Finds modules on sys.path; modules that the image lacks look as if they were not installed."""

    def __init__(self, settings):
        self.modules = set(settings["modules"]) | set(sys.stdlib_module_names)
        self.bundle = Path(settings["bundle"]).resolve()
        self.log = settings["log"]

    def find_spec(self, name, path=None, target=None):
        found = importlib.machinery.PathFinder.find_spec(name, path, target)
        if found is None or path is not None or self._allowed(name, found):
            return found
        carried = importlib.machinery.PathFinder.find_spec(name, [place for place in sys.path if _INSTALLED in place])
        if carried is not None:
            return carried
        with open(self.log, "a", encoding="utf-8") as file:  # noqa: PTH123
            file.write(name + "\n")
        return None

    @staticmethod
    def find_distributions(*arguments, **keywords):
        return importlib.machinery.PathFinder.find_distributions(*arguments, **keywords)

    def _allowed(self, name, found):
        places = [found.origin] if found.origin else list(found.submodule_search_locations or [])
        if any(Path(place).resolve().is_relative_to(self.bundle) for place in places):
            return True
        own = any(place.startswith(_STDLIB) and "-packages" not in place for place in places)
        return own or (name in self.modules and name != "fb3")


def block_sockets():
    """Refuses every connection except to this machine, which the notebook's kernel needs."""
    import socket

    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and str(address[0]) not in {"127.0.0.1", "::1", "localhost"}:
            raise OSError(f"the network is cut (rehearsal): {address}")
        return connect(self, address)

    def no_names(*arguments, **keywords):
        raise socket.gaierror("the network is cut (rehearsal)")

    socket.socket.connect = guarded
    socket.getaddrinfo = no_names


if __name__ == "sitecustomize" and os.environ.get("FB3_GUARD"):
    _settings = json.loads(Path(os.environ["FB3_GUARD"]).read_text(encoding="utf-8"))
    # The finders of editable installs are dropped: they would find this machine's fb3.
    sys.meta_path[:] = [
        importlib.machinery.BuiltinImporter,
        importlib.machinery.FrozenImporter,
        GuardedFinder(_settings),
    ]
    if _settings["sockets"]:
        block_sockets()
