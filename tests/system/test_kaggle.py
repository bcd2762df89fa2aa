import platform
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from fb3.errors import Fb3Error
from fb3.prediction import fold_prediction
from fb3.recipe import load_recipe
from fb3.runs.run_folder import Member
from fb3.system import devices
from fb3.system.devices import pick_device, pick_devices, pick_precision
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


def test_a_gpu_without_kernels_falls_back_and_says_so(monkeypatch, capsys):
    monkeypatch.delenv("FB3_DEVICE", raising=False)
    monkeypatch.setattr(devices, "_accelerators", lambda: {"cuda": True})
    real = torch.ones

    def no_kernels(*shape, device=None):
        if device == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")
        return real(*shape, device=device)

    monkeypatch.setattr(torch, "ones", no_kernels)
    assert pick_device() == torch.device("cpu")
    assert "no kernel image" in capsys.readouterr().err
    with pytest.raises(Fb3Error, match="device cuda: does not work here"):
        pick_device("cuda")


def test_precisions(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(devices, "_cpu_has_bf16", lambda: True)
    assert pick_precision("auto", cpu) == "bf16"
    monkeypatch.setattr(devices, "_cpu_has_bf16", lambda: False)
    assert pick_precision("auto", cpu) == "fp32"
    assert pick_precision("bf16", cpu) == "bf16"
    for capability, precision in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert pick_precision("auto", torch.device("cuda")) == precision


@pytest.mark.parametrize(("capability", "taken"), [((7, 5), "fp16"), ((8, 0), "bf16")])
def test_bf16_is_not_emulated(capability, taken, run, monkeypatch, capsys):
    """Training refuses it on a T4, prediction takes fp16 and says so: nobody sits before it to change the recipe."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda:1")
    recipe = load_recipe(run / "recipe.yaml", ["predict.precision=bf16"])
    assert fold_prediction._precision(Member("run", run, recipe, []), device, "run/fold0") == taken
    said = capsys.readouterr().err
    if taken == "bf16":
        assert pick_precision("bf16", device) == "bf16"
        assert not said
        return
    assert said == "run/fold0: predict.precision=bf16, but cuda:1 has no bf16 and emulates it slowly; taking fp16\n"
    with pytest.raises(Fb3Error, match=r"^train\.precision=bf16: this GPU has no bf16, .*; use auto or fp16$"):
        pick_precision("bf16", device)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to")
def test_what_tensors_free_serves_the_next_ones():
    """Told by the pages that the system hands out anew, in a process of its own."""
    program = (
        "import resource, sys, torch; from fb3.system.devices import keep_freed_memory\n"
        "keep_freed_memory() if sys.argv[1] == 'keep' else None\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "before = faults()\n"
        "for megabytes in range(1, 25): torch.ones(megabytes * 2**18)\n"  # each larger than what is known to come back
        "print(faults() - before)\n"
    )
    keep, usual = (
        int(subprocess.run([sys.executable, "-c", program, how], check=True, capture_output=True, text=True).stdout)
        for how in ("keep", "usual")
    )
    assert keep * 3 < usual
