"""A small server in the place of Kaggle's, which the real client talks to."""

import pytest

from tests.upload.kaggle_server import SECRET, Kaggle, serve


@pytest.fixture
def state(monkeypatch, tmp_path):
    """The server's state; the client of this test talks to it."""
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")  # before the client is imported
    from kagglesdk import kaggle_env

    state = Kaggle()
    server = serve(state)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, address)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", SECRET)
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield state
    server.shutdown()
    server.server_close()
