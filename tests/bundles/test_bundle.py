"""Reading a bundle: a changed, missing or foreign file is named."""

import pytest

from fb3.bundles.bundle import read_bundle, verify_bundle
from fb3.errors import Fb3Error
from tests.conftest import copied


@pytest.mark.parametrize("name", ["runs/tiny/fold1/model.safetensors", "runs/tiny/recipe.yaml", "fb3/data/essays.py"])
def test_a_changed_file_is_refused_by_name(bundle, tmp_path, name):
    damaged = copied(bundle, tmp_path / "bundle")
    content = bytearray((damaged / name).read_bytes())
    content[-5] ^= 1
    (damaged / name).write_bytes(content)
    with pytest.raises(Fb3Error, match=f"{name}: its hash"):
        verify_bundle(damaged)
    (damaged / name).write_bytes(content + b"x")
    with pytest.raises(Fb3Error, match=f"{name}: .* bytes, packed were"):
        verify_bundle(damaged)
    (damaged / name).unlink()
    with pytest.raises(Fb3Error, match=f"{name}: missing"):
        verify_bundle(damaged)


def test_the_upload_metadata_is_the_users_to_edit(bundle, tmp_path):
    edited = copied(bundle, tmp_path / "bundle")
    (edited / "dataset-metadata.json").write_text("{}")
    verify_bundle(edited)
    (edited / "dataset-metadata.json").unlink()
    verify_bundle(edited)


def test_no_bundle(tmp_path):
    with pytest.raises(Fb3Error, match="no bundle"):
        read_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(Fb3Error, match="of format 1"):
        read_bundle(tmp_path)
