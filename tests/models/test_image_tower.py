"""Image encoders that are trained: their vectors are the frozen encoder's, whatever stands beside them."""

import numpy as np
import pytest
import torch

from fb3.models.image_encoder import ImageEncoder
from fb3.models.image_tower import build_image_tower
from fb3.models.picture_processor import PixelMaker
from tests.picture_data import FAMILIES, drawn, write_image_encoder


def tower_of(folder, **more):
    maker = PixelMaker(str(folder))
    numbers = {"mean": maker.mean.tolist(), "deviation": maker.deviation.tolist()}
    return maker, build_image_tower(folder, {"shape": list(maker.shape), **numbers}, **more)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_gives_the_vectors_of_the_frozen_encoder(family, tmp_path):
    frozen = ImageEncoder(str(write_image_encoder(family, tmp_path / "whole")), torch.device("cpu"))
    frozen.save(tmp_path / "encoder")
    maker, tower = tower_of(tmp_path / "encoder", weights=True)
    pictures = [drawn(number, size=(40 + number, 30)) for number in range(5)]
    wanted = frozen.encode(torch.stack([frozen.prepare(each) for each in pictures]))
    values = torch.from_numpy(maker.encode(torch.stack([maker.prepare(each) for each in pictures]))).float()
    assert (tower.width, tower.vector) == (frozen.width, frozen.vector)
    frames, seen = torch.zeros(3, 3, values.shape[1]), torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]])
    frames[0, :2], frames[2] = values[:2], values[2:]
    with torch.no_grad():
        found = tower.eval()(frames, seen)
    np.testing.assert_allclose(found[seen.bool()].numpy(), wanted.astype(np.float32), atol=2e-3)
    assert not found[~seen.bool()].any()
    assert not tower(torch.full_like(frames, 7), torch.zeros_like(seen)).any()


def test_pixels_are_the_resized_picture(tmp_path):
    maker, _ = tower_of(write_image_encoder("vit", tmp_path / "vit"), weights=False)
    picture = drawn(3, size=(32, 32))  # the size that the encoder wants
    pixels = maker.encode(maker.prepare(picture)[None]).reshape(3, 32, 32)
    np.testing.assert_array_equal(pixels, np.asarray(picture).transpose(2, 0, 1))


def test_batch_normalisation_keeps_its_statistics(tmp_path):
    _, tower = tower_of(write_image_encoder("convnext", tmp_path / "convnext"), weights=True)
    tower.norm = torch.nn.BatchNorm2d(3)
    tower.train()
    assert tower.training
    assert tower.model.training
    assert not tower.norm.training
