"""The same weights under two versions of transformers: no layer's states may differ, or a bundle predicts otherwise.

FB3_OTHER_TRANSFORMERS names the other one: `pip install --target DIR --no-deps transformers==… tokenizers==…
huggingface-hub==…`, and what else that version needs.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fb3.errors import Fb3Error
from fb3.models.towers import layer_states
from fb3.runs.checkpoint import load_fold
from fb3.system.files import read_json, write_json
from tests.conftest import ROOT, copied
from tests.models import states
from tests.models.families import FAMILIES, make_tokenizers, write_backbone
from tests.models.test_families import REFUSED

OTHER = os.environ.get("FB3_OTHER_TRANSFORMERS")
# A fold that refuses to load, or to compute, is no danger: inference says so.
LOUD = ("does not recognize this architecture", "not the weights of this recipe's model", "unexpected keyword argument")


def test_the_last_of_the_layers_is_what_the_encoder_hands_out():
    """ModernBERT's layers are followed by a norm, before which `hidden_states` ends in versions up to 5.0."""
    before, after = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    out = SimpleNamespace(hidden_states=(before, before, before), last_hidden_state=after)
    assert [bool(layer.any()) for layer in layer_states(out)] == [True, True, False]


def test_weights_by_other_names_tell_the_version(run, tiny, tmp_path):
    fold = copied(run / "fold0", tmp_path / "fold0")
    weights = load_file(fold / "model.safetensors")
    save_file({name.replace("encoder.", "coder.", 1): t for name, t in weights.items()}, fold / "model.safetensors")
    with pytest.raises(Fb3Error, match=r"not the weights of this recipe's model(?!.*transformers)"):
        load_fold(tiny, run / "encoder", fold)
    info = read_json(fold / "fold.json")
    write_json({**info, "versions": {**info["versions"], "transformers": "4.0.0"}}, fold / "fold.json")
    with pytest.raises(Fb3Error, match=r"not the weights of .*; trained under transformers 4\.0\.0, here it is"):
        load_fold(tiny, run / "encoder", fold)


@pytest.mark.skipif(not OTHER, reason="slow; set FB3_OTHER_TRANSFORMERS to a folder with another transformers")
def test_no_family_has_other_states_under_another_version(tmp_path, texts):
    tokenizers, folders = make_tokenizers(texts), {}
    for family in [family for family in FAMILIES if family not in REFUSED]:
        folders[family] = tmp_path / family.replace("@", "-")
        write_backbone(family, tokenizers, folders[family])
        states.save_encoder(folders[family])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([OTHER, str(ROOT)])}
    command = [sys.executable, "-m", "tests.models.states", *map(str, folders.values())]
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
    compared, differ = 0, {}
    for family, folder in folders.items():
        if (folder / "error.txt").is_file():
            assert any(words in (folder / "error.txt").read_text() for words in LOUD), family
            continue
        mine, theirs = states.states_of(folder), load_file(folder / "states.safetensors")
        assert mine.keys() == theirs.keys(), family
        apart = max(float((mine[layer] - theirs[layer]).abs().max()) for layer in mine)
        compared += 1
        if apart > 1e-5:
            differ[family] = apart
    assert compared > 40
    assert not differ
