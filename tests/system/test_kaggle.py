from contextlib import nullcontext

import pytest

from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.system.devices import pick_devices
from fb3.system.kaggle import find_bundle, find_competition, on_kaggle, secret

LAYOUTS = [
    ("slug", "other"),
    ("datasets/owner/slug", "competitions/slug"),
    ("notebooks/owner/slug", "competitions/slug"),
    ("models/owner/slug/pytorch/base/1", "competitions/slug"),
]


@pytest.mark.parametrize(("bundle", "competition"), LAYOUTS)
def test_inputs_are_found_in_every_mount_layout(tmp_path, monkeypatch, bundle, competition):
    (tmp_path / bundle / "fb3").mkdir(parents=True)
    (tmp_path / bundle / "runs").mkdir()
    (tmp_path / bundle / "manifest.json").write_text("{}")
    (tmp_path / "datasets" / "me" / "source" / "fb3").mkdir(parents=True)  # of --source-only
    (tmp_path / "datasets" / "me" / "source" / "manifest.json").write_text("{}")
    (tmp_path / competition).mkdir(parents=True, exist_ok=True)
    (tmp_path / competition / "sample_submission.csv").write_text("")
    (tmp_path / "someone" / "else").mkdir(parents=True)
    (tmp_path / "someone" / "else" / "manifest.json").write_text("{}")
    monkeypatch.setenv("FB3_INPUT", str(tmp_path))
    assert find_bundle() == tmp_path / bundle
    assert find_competition() == tmp_path / competition


def test_source_alone_is_no_bundle_to_predict_with(tmp_path):
    (tmp_path / "source" / "fb3").mkdir(parents=True)
    (tmp_path / "source" / "manifest.json").write_text("{}")
    with pytest.raises(Fb3Error, match=r"no bundle with a trained run .* source in \['.*/source'\]; attach"):
        find_bundle(tmp_path)


def test_none_or_two_name_the_argument_that_decides(tmp_path):
    with pytest.raises(Fb3Error, match=r"no competition's data below it.*--data"):
        find_competition(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "sample_submission.csv").write_text("")
    with pytest.raises(Fb3Error, match=r"more than one .*/a'.*/b'.*decide with --data"):
        find_competition(tmp_path)


def test_no_input_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FB3_INPUT", str(tmp_path / "none"))
    with pytest.raises(Fb3Error, match="--data DIR, or set FB3_INPUT"):
        find_bundle()


@pytest.mark.parametrize("name", ["none", "a" * 5000, "a\0b", "cuda:-1", "cpu:99", "../..", "\ud800"])
def test_a_notebooks_parameters_may_be_anything(name, tmp_path, monkeypatch):
    """FB3_INPUT, FB3_DEVICE, FB3_RECIPE."""
    monkeypatch.chdir(tmp_path)
    for read in (find_bundle, find_competition, pick_devices, load_recipe):
        the_cpu_will_do = (read, name) == (pick_devices, "cpu:99")
        with nullcontext() if the_cpu_will_do else pytest.raises(Fb3Error):
            read(name)


def test_kaggle_is_told_by_its_variables(monkeypatch):
    for name in [name for name in __import__("os").environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    assert not on_kaggle()
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", "x")
    assert not on_kaggle()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert on_kaggle()
    assert secret("FB3_NO_SUCH_SECRET") is None
