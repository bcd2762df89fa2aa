"""Fixtures: a synthetic competition, tiny real encoders built from configs, one trained run and its bundle."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported; what a test starts inherits it
    os.environ.setdefault("OMP_NUM_THREADS", "1")
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from fb3.bundles.packing import write_bundle
from fb3.demo.synthetic import make_essays, write_competition
from fb3.errors import Fb3Error
from fb3.models.from_scratch import SPECIAL, train_tokenizer
from fb3.recipe import load_recipe
from fb3.recipe.data import DataSettings
from fb3.targets.target import Scores
from fb3.training.run import train

ROOT = Path(__file__).resolve().parent.parent
TINY = ["train.precision=fp32", "predict.precision=fp32", "train.epochs=1"]


@pytest.fixture(autouse=True)
def plain_numbers(monkeypatch):
    """A message with numpy's form of a number, such as np.int64(1), fails the test."""
    plain = Fb3Error.__init__

    def checked(self, message=""):
        assert not re.search(r"\bnp\.[a-z]+\d*\(", str(message)), message
        plain(self, message)

    monkeypatch.setattr(Fb3Error, "__init__", checked)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test finds what another session has computed, nor leaves anything in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FB3_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def competition(tmp_path_factory):
    """The folder of a synthetic competition of 60 + 20 essays."""
    data = tmp_path_factory.mktemp("competition") / "data"
    write_competition(data, 60, 20, seed=1)
    return data


@pytest.fixture(scope="session")
def tiny():
    """A recipe of a tiny encoder, float32, one epoch."""
    return load_recipe("tiny", TINY)


@pytest.fixture(scope="session")
def run(tiny, competition, tmp_path_factory):
    """A run folder of two folds."""
    return train(tiny, competition, tmp_path_factory.mktemp("run") / "tiny").path


@pytest.fixture(scope="session")
def bundle(run, tmp_path_factory):
    """The bundle of that run."""
    return write_bundle([run], tmp_path_factory.mktemp("packed") / "bundle").path


@pytest.fixture(scope="session")
def texts():
    """Texts to train tokenizers on."""
    return [essay.text for essay in make_essays(40, seed=3)]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory, texts):
    """A tiny BERT, in the files that a hub has."""
    folder, tokenizer = tmp_path_factory.mktemp("bert"), train_tokenizer(texts, 300)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    size |= {"max_position_embeddings": 80, "vocab_size": 300, "pad_token_id": 0, "architectures": []}
    AutoModel.from_config(AutoConfig.for_model("bert", **size)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def without_network():
    """A command prefix that cuts the network; the test is skipped where the machine forbids network namespaces."""
    for prefix in (["unshare", "-rn"], ["unshare", "-n"]):
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    pytest.skip("no network namespaces here")


@pytest.fixture
def no_sockets(monkeypatch):
    """Any connection from this process fails the test."""
    import socket

    def refuse(*arguments):
        raise AssertionError(f"a connection was tried: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def copied(folder: Path, to: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(folder, to)
    return to


def task_of(kind, settings, *columns):
    """A task on a scale of scores for some columns."""
    return kind(settings, Scores(DataSettings(target_columns=columns), settings))
