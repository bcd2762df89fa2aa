"""Upload with the real kaggle client against a small server that can fail."""

from importlib.util import find_spec

import pytest

from fb3.errors import Fb3Error
from fb3.system.files import read_json, write_json
from fb3.upload.dataset import check_limits, upload_bundle
from tests.conftest import copied
from tests.upload.kaggle_server import SECRET

pytestmark = pytest.mark.skipif(find_spec("kaggle") is None, reason="the upload extra is not installed")
QUICK = {"poll_seconds": 0.01, "wait_seconds": 20.0}


@pytest.fixture
def packed(bundle, tmp_path):
    """A bundle whose metadata names an owner."""
    packed = copied(bundle, tmp_path / "bundle")
    write_json(
        {**read_json(packed / "dataset-metadata.json"), "id": "someone/fb3-tiny"}, packed / "dataset-metadata.json"
    )
    return packed


def files_of(packed):
    files = {path.relative_to(packed).as_posix(): path.stat().st_size for path in packed.rglob("*") if path.is_file()}
    del files["dataset-metadata.json"]
    return files


def test_a_new_data_set_then_a_new_version(state, packed, capsys):
    upload_bundle(packed, **QUICK)
    assert state.versions["someone/fb3-tiny"] == [files_of(packed)]
    created = next(body for method, body in state.calls if method == "CreateDataset")
    assert created["isPrivate"] is True
    state.faults["processing"] = 3
    upload_bundle(packed, message="better", **QUICK)
    assert state.versions["someone/fb3-tiny"] == [files_of(packed)] * 2
    version = next(body for method, body in state.calls if method == "CreateDatasetVersion")
    assert version["body"]["versionNotes"] == "better"
    said = capsys.readouterr()
    assert "ready, all" in said.err
    assert SECRET not in said.err + said.out
    assert not packed.with_name(".bundle.upload").exists()


def test_a_dry_run_sends_nothing(state, packed, capsys):
    upload_bundle(packed, dry_run=True)
    assert state.calls == []
    said = capsys.readouterr().err
    assert "runs/tiny/fold0/model.safetensors" in said
    assert "nothing was sent" in said


def test_a_refused_file_stops_before_anything_is_created(state, packed):
    state.faults["forbidden"] = 99
    with pytest.raises(Fb3Error, match="could not be uploaded, so nothing was created") as error:
        upload_bundle(packed, **QUICK)
    assert SECRET not in str(error.value)
    assert "SECRETUPLOAD" not in str(error.value)
    assert not state.versions


@pytest.mark.parametrize("fault", ["busy", "broken"])
def test_a_broken_blob_is_resumed_where_it_broke(state, packed, fault):
    state.faults[fault] = 1
    upload_bundle(packed, **QUICK)
    assert state.versions["someone/fb3-tiny"] == [files_of(packed)]
    if fault == "busy":
        assert any(where.startswith("bytes */") for _, where in state.puts), "it asked how far it had come"


def test_a_second_call_goes_on_where_the_first_broke_off(state, packed):
    state.faults["busy"] = 99
    with pytest.raises(Fb3Error):
        upload_bundle(packed, **QUICK)
    state.faults["busy"] = 0
    begun = len(state.names)
    upload_bundle(packed, **QUICK)
    assert state.versions["someone/fb3-tiny"] == [files_of(packed)]
    again = [name for token, name in state.names.items() if int(token.removeprefix("token")) >= begun]
    assert state.names["token0"] not in again, "the first file was taken up again, not begun anew"


def test_a_stale_record_of_an_upload_is_begun_anew(state, packed):
    state.faults["busy"] = 99
    with pytest.raises(Fb3Error):
        upload_bundle(packed, **QUICK)
    state.faults |= {"busy": 0, "stale": 99}
    upload_bundle(packed, **QUICK)
    assert state.versions["someone/fb3-tiny"] == [files_of(packed)]


def test_what_an_earlier_try_left_is_not_sent(state, packed):
    state.faults["forbidden"] = 99
    with pytest.raises(Fb3Error):
        upload_bundle(packed, **QUICK)
    stage = packed.with_name(".bundle.upload")
    (stage / "wheels.zip").write_bytes(b"old")
    metadata = read_json(packed / "dataset-metadata.json")
    write_json({**metadata, "id": "someone/another-one", "title": "Another"}, packed / "dataset-metadata.json")
    state.faults["forbidden"] = 0
    upload_bundle(packed, **QUICK)
    assert state.versions == {"someone/another-one": [files_of(packed)]}


def test_being_told_to_slow_down_is_said_or_waited_for(state, packed):
    state.faults["slow_down"] = 1
    with pytest.raises(Fb3Error, match="slow down"):
        upload_bundle(packed, **QUICK)
    upload_bundle(packed, **QUICK)


def test_a_name_in_use_is_an_error(state, packed):
    state.faults["in_use"] = 1
    with pytest.raises(Fb3Error, match="already in use"):
        upload_bundle(packed, **QUICK)


def test_a_file_that_vanishes_is_noticed(state, packed):
    state.faults["vanish"] = 1
    with pytest.raises(Fb3Error, match=r"1 files are missing \['fb3/__init__.py'\]"):
        upload_bundle(packed, **QUICK)


def test_a_data_set_that_never_gets_ready(state, packed):
    state.faults["processing"] = 10**6
    with pytest.raises(Fb3Error, match="not ready after 0 s"):
        upload_bundle(packed, poll_seconds=0.01, wait_seconds=0.3)


def test_no_credentials(state, packed, monkeypatch, capsys):
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    with pytest.raises(Fb3Error, match=r"kaggle\.com/settings"):
        upload_bundle(packed, **QUICK)
    assert not state.versions


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "your-name/fb3-tiny"}, "still begins with your-name"),
        ({"id": "someone/tiny"}, "6 to 50"),
        ({"title": "x" * 51}, "6 to 50"),
        ({"licenses": []}, "exactly one licence"),
        ({"id": None}, "no id in it"),
    ],
)
def test_limits_are_checked_before_the_first_byte(packed, change, words):
    path = packed / "dataset-metadata.json"
    write_json({**read_json(path), **change}, path)
    with pytest.raises(Fb3Error, match=words):
        check_limits(packed)


def test_too_many_files_at_the_top(packed):
    for number in range(51):
        (packed / f"extra{number}").write_text("")
    with pytest.raises(Fb3Error, match="Kaggle takes 50"):
        check_limits(packed)
