import shutil
import subprocess
import sys

from fb3.system.files import write_json
from tests.conftest import ROOT


def test_the_guard_blocks_sockets_where_it_must(tmp_path):
    guard = tmp_path / "sitecustomize.py"
    shutil.copyfile(ROOT / "fb3" / "rehearsal" / "import_guard.py", guard)
    settings = {"modules": [], "bundle": str(tmp_path), "log": str(tmp_path / "log"), "sockets": True}
    write_json(settings, tmp_path / "s.json")
    program = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
    env = {"PYTHONPATH": str(tmp_path), "FB3_GUARD": str(tmp_path / "s.json")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert "the network is cut (rehearsal)" in done.stderr
