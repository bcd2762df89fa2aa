"""Backbones from elsewhere: broken ones are refused by name, a pickle's code and a repository's own are not run."""

import json
import os
import re

import pytest
import torch
import transformers
from transformers import AutoModel

from fb3.errors import Fb3Error
from fb3.models.backbone import export_encoder, random_encoder
from fb3.models.build import build_scorer
from fb3.recipe import load_recipe
from fb3.system.files import read_json, write_json
from tests.conftest import copied
from tests.hostile import told


class Evil:
    """What a pickle can do: it makes a folder when it is opened."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def start(folder, out):
    """The first steps of a training with a backbone."""
    recipe = load_recipe("tiny", [f"model.backbone={folder}", "data.max_length=64"])
    export_encoder(recipe.model, out)
    return build_scorer(recipe, out, init="pretrained")


def as_bin(folder, content):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


def test_a_pytorch_model_bin_is_read_once_without_its_code(tiny_bert, tmp_path):
    plain = start(tiny_bert, tmp_path / "plain").state_dict()
    folder, place = copied(tiny_bert, tmp_path / "bin"), tmp_path / "evil"
    as_bin(folder, AutoModel.from_pretrained(tiny_bert).state_dict())
    read = start(folder, tmp_path / "encoder").state_dict()
    assert all(torch.equal(read[name], plain[name]) for name in plain if name.startswith("encoder"))
    assert not list((tmp_path / "encoder").glob("*.bin"))
    torch.load(folder / "pytorch_model.bin", weights_only=True)
    for content in ({"embeddings.weight": Evil(place)}, Evil(place)):
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(Fb3Error, match=r"model\.backbone=.*weights_only=True; take the backbone's model\.safetens"):
            start(folder, tmp_path / "encoder")
        assert not place.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert place.exists(), "the trap works"
    (folder / "pytorch_model.bin").write_bytes(b"PK\3\4" + b"\0" * 100)
    with pytest.raises(Fb3Error, match=r"pytorch_model\.bin is cut off"):
        start(folder, tmp_path / "encoder")


@pytest.mark.parametrize("kind", ["a model of its own", "code beside a known model", "a tokenizer of its own"])
def test_code_that_comes_with_a_backbone_is_not_run(kind, tiny_bert, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda *question: "y")  # transformers asks where nothing is said
    folder, place = copied(tiny_bert, tmp_path / "remote"), tmp_path / "evil"
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(place)!r})\nclass C: pass\n")
    name = "tokenizer_config.json" if "tokenizer" in kind else "config.json"
    change = {"auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.C", "AutoTokenizer": ["evil.C", "evil.C"]}}
    change |= {"model_type": "evil"} if "model of its own" in kind else {}
    change |= {"tokenizer_class": "C"} if "tokenizer" in kind else {}
    write_json({**read_json(folder / name), **change}, folder / name)
    if "model of its own" in kind:
        with pytest.raises(Fb3Error, match=r"model\.backbone=.*fb3 runs none: trust_remote_code is off"):
            start(folder, tmp_path / "encoder")
    else:
        found = told(lambda folder: start(folder, tmp_path / "encoder"), folder)
        assert not isinstance(found, Exception) or "trust_remote_code is off" in str(found)
        if not isinstance(found, Exception):
            assert "auto_map" not in (tmp_path / "encoder" / "config.json").read_text()
    if "beside" in kind:
        assert "its code is not run (trust_remote_code is off)" in capsys.readouterr().err
    assert not place.exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"{}"),
        ("config.json", {"hidden_size": "x"}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"max_position_embeddings": 10**12}),
        ("config.json", {"num_hidden_layers": 10**9}),
        ("config.json", {"hidden_size": -4}),
        ("config.json", {"pad_token_id": 10**6}),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b""),
        ("tokenizer_config.json", b"[1]"),
        ("model.safetensors", b"\xff" * 200),
    ],
)
def test_a_broken_backbone(file, content, tiny_bert, tmp_path):
    folder = copied(tiny_bert, tmp_path / "broken")
    tree = {**read_json(folder / "config.json"), **content} if isinstance(content, dict) else None
    (folder / file).write_bytes(content if tree is None else json.dumps(tree).encode())
    with pytest.raises(Fb3Error, match="broken"):
        start(folder, tmp_path / "encoder")


def test_a_folder_of_another_version_says_so_where_it_fails(tiny_bert, tmp_path):
    folder = copied(tiny_bert, tmp_path / "newer")
    tree = read_json(folder / "config.json")
    write_json({**tree, "hidden_size": "x", "transformers_version": "9.9.9"}, folder / "config.json")
    with pytest.raises(
        Fb3Error, match=rf"saved by transformers 9\.9\.9, read by {re.escape(transformers.__version__)}"
    ):
        start(folder, tmp_path / "encoder")


def test_the_sizes_of_a_config_are_looked_at_before_anything_is_built(run, tmp_path):
    encoder = copied(run / "encoder", tmp_path / "encoder")
    write_json({**read_json(encoder / "config.json"), "max_position_embeddings": 10**11}, encoder / "config.json")
    with pytest.raises(Fb3Error, match=r"config\.json: max_position_embeddings=100000000000: more than"):
        random_encoder(encoder)
