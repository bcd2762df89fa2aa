"""A hub id, and the folders that are mounted beside a notebook."""

import socket

import pytest
from huggingface_hub import constants

from fb3.errors import Fb3Error
from fb3.models.attached_backbone import local_backbone

ID, KEY = "microsoft/deberta-v3-base", "model.backbone"


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """An input folder with what must not be taken: another model, a run's own encoder, a tokenizer without weights."""
    monkeypatch.setenv("FB3_INPUT", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    model(tmp_path / "datasets" / "me" / "deberta-v3-base-squad2")
    model(tmp_path / "notebooks" / "me" / "deberta-v3-base" / "run" / "scratch")
    (tmp_path / "notebooks" / "me" / "deberta-v3-base" / "run" / "recipe.yaml").write_text("")
    model(tmp_path / "bundle" / "deberta-v3-base", weights=())
    return tmp_path


def model(folder, weights=("model.safetensors",)):
    folder.mkdir(parents=True)
    for name in ("config.json", *weights):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("place", "weights"),
    [
        ("deberta-v3-base", "model.safetensors"),
        ("datasets/me/debertav3base", "pytorch_model.bin"),
        ("datasets/me/microsoft-deberta-v3-base/files", "model-00001-of-00002.safetensors"),
        ("models/microsoft/deberta-v3-base/transformers/default/1", "model.safetensors"),
    ],
)
def test_a_hub_id_is_the_attached_folder_of_its_name(inputs, place, weights):
    folder = model(inputs / place, [weights])
    assert local_backbone(ID, KEY) == str(folder)


def test_without_a_folder_and_without_the_hub_the_message_names_the_mend(inputs, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://no-such-host.invalid")
    for backbone in (ID, "not a/name of the hub"):
        with pytest.raises(Fb3Error, match=r"Attach the model .* give model\.backbone=FOLDER; attached are .*squad2'"):
            local_backbone(backbone, KEY)
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        assert local_backbone(ID, KEY) == ID, "the hub can be asked"


def test_two_folders_of_one_name_are_for_the_user_to_decide(inputs):
    for place in ("a/deberta-v3-base", "b/deberta-v3-base"):
        model(inputs / place)
    with pytest.raises(Fb3Error, match=r"2 attached folders bear this name; give model\.backbone=FOLDER"):
        local_backbone(ID, KEY)


def test_a_folder_and_a_machine_without_inputs_are_left_alone(inputs, tmp_path, monkeypatch):
    folder = model(tmp_path / "mine")
    for backbone in (str(folder), "/no/such/folder", "./none", "~/none"):
        assert local_backbone(backbone, KEY) == backbone
    monkeypatch.setenv("FB3_INPUT", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://no-such-host.invalid")
    assert local_backbone(ID, KEY) == ID
