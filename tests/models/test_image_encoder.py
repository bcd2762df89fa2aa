"""Image encoders: a picture's vector is the one that processor and model give by hand."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, CLIPVisionModel

from fb3.errors import Fb3Error
from fb3.models.backbone_files import IMAGE_KEY, check_backbone
from fb3.models.image_encoder import ImageEncoder
from fb3.models.picture_flops import picture_flops
from fb3.system.files import read_json, write_json
from tests.conftest import ROOT, copied
from tests.picture_data import FAMILIES, drawn, write_image_encoder

CPU = torch.device("cpu")
VECTORS = {  # by family: the vector's place in the model's output
    "clip": ("pooler_output", lambda out: out.pooler_output[0]),
    "vit": ("class_token", lambda out: out.last_hidden_state[0, 0]),
    "swin": ("pooler_output", lambda out: out.last_hidden_state[0].mean(0)),
    "convnext": ("pooler_output", lambda out: out.pooler_output[0]),
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {family: write_image_encoder(family, folder / family) for family in FAMILIES}


def by_hand(folder, family, picture):
    processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)
    model = (CLIPVisionModel if family == "clip" else AutoModel).from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(**processor(images=picture, return_tensors="pt"))
    return VECTORS[family][1](out).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vector_is_what_processor_and_model_give_by_hand(family, encoders):
    encoder = ImageEncoder(str(encoders[family]), CPU)
    picture = drawn(1)
    [found] = encoder.encode(encoder.prepare(picture)[None])
    assert (found.dtype, encoder.vector, encoder.width) == (np.float16, VECTORS[family][0], len(found))
    np.testing.assert_allclose(found, by_hand(encoders[family], family, picture), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("size", [(20, 1), (20, 3), (1, 1), (3, 50)])
def test_a_narrow_picture_keeps_its_channels(size, encoders):
    """Without a hint processors take a picture of height 1 or 3 for one whose channels stand first."""
    encoder = ImageEncoder(str(encoders["vit"]), CPU)
    wide = drawn(1, size=size).resize((32, 32), 2)
    torch.testing.assert_close(encoder.prepare(drawn(1, size=size)), encoder.prepare(wide))


def test_a_pooler_that_no_file_holds_does_not_matter(encoders, tmp_path):
    folder = copied(encoders["vit"], tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    one, two = (ImageEncoder(str(each), CPU) for each in (folder, encoders["vit"]))
    pixels = one.prepare(drawn(2))[None]
    np.testing.assert_array_equal(one.encode(pixels), two.encode(pixels))


def test_the_description_tells_other_weights_and_another_processor(encoders, tmp_path):
    first = ImageEncoder(str(encoders["vit"]), CPU).description()
    assert ImageEncoder(str(shutil.copytree(encoders["vit"], tmp_path / "copy")), CPU).description() == first
    other = ImageEncoder(str(write_image_encoder("vit", tmp_path / "other", seed=1)), CPU).description()
    assert {key for key in first if first[key] != other[key]} == {"weights"}
    path = tmp_path / "copy" / "preprocessor_config.json"
    write_json({**read_json(path), "image_mean": [0.4, 0.4, 0.4]}, path)
    other = ImageEncoder(str(tmp_path / "copy"), CPU).description()
    assert {key for key in first if first[key] != other[key]} == {"processor"}


def test_folders_that_are_no_image_encoder_are_refused(encoders, tiny_bert, tmp_path):
    with pytest.raises(Fb3Error, match=r"the image_processor is missing \(preprocessor_config.json, or one of"):
        check_backbone(str(tiny_bert), IMAGE_KEY)
    folder = copied(tiny_bert, tmp_path / "bert")
    shutil.copy(encoders["vit"] / "preprocessor_config.json", folder)
    with pytest.raises(Fb3Error, match="reads no pictures; give an image encoder"):
        ImageEncoder(str(folder), CPU)
    folder = copied(encoders["vit"], tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "layernorm" not in k}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Fb3Error, match="weights are not in the file, so they would be random"):
        ImageEncoder(str(folder), CPU)


def test_a_processor_of_another_size_is_refused(encoders, tmp_path):
    folder = copied(encoders["vit"], tmp_path / "vit")
    path = folder / "preprocessor_config.json"
    write_json({**read_json(path), "size": {"height": 48, "width": 48}}, path)
    with pytest.raises(Fb3Error, match=r"IMAGE_ENCODER=.*vit: .*48"):
        ImageEncoder(str(folder), CPU)


@pytest.mark.skipif(
    "FB3_OTHER_TRANSFORMERS" not in os.environ, reason="set it to a folder with another version of transformers"
)
def test_another_version_of_transformers_gives_the_same_vectors(encoders):
    code = (
        "import sys, numpy as np, torch; from fb3.models.image_encoder import ImageEncoder; "
        "from tests.picture_data import drawn\n"
        "for folder in sys.argv[1:]:\n"
        "    encoder = ImageEncoder(folder, torch.device('cpu'))\n"
        "    vector = encoder.encode(encoder.prepare(drawn(1))[None])\n"
        "    print(encoder.description()['weights'], vector.astype(float).tolist())"
    )
    command = [sys.executable, "-c", code, *map(str, encoders.values())]
    paths = (str(ROOT), os.pathsep.join([os.environ["FB3_OTHER_TRANSFORMERS"], str(ROOT)]))
    one, two = (
        subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for path in paths
    )
    assert len(one) == len(FAMILIES)
    assert one == two


def test_flops_are_those_of_the_layers(encoders, tmp_path):
    ImageEncoder(str(encoders["clip"]), CPU).save(tmp_path)  # a run's own copy: the tower of pictures alone
    patches, tokens, width = 4 * 4, 17, 16
    layer = 2 * tokens * (4 * width * width + 2 * width * 32) + 4 * tokens**2 * width
    assert picture_flops(tmp_path) == 2 * patches * (3 * 8 * 8) * width + 2 * layer
