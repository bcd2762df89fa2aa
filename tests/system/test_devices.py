import platform
import subprocess
import sys

import pytest
import torch

from fb3.errors import Fb3Error
from fb3.prediction import scorer_prediction
from fb3.recipe import load_recipe
from fb3.system import devices
from fb3.system.devices import pick_device, pick_precision


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
    assert scorer_prediction.How("run/fold0", str(device), recipe.predict).wanted() == taken
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
