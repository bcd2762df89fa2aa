import pytest
import torch
from safetensors.torch import load_file, save_file

from fb3.errors import Fb3Error
from fb3.models.build import build_scorer
from fb3.recipe import load_recipe
from fb3.runs.checkpoint import as_half, load_fold, weights_of
from fb3.runs.fold_json import ids_hash
from tests.conftest import copied


def test_a_loaded_fold_holds_the_files_weights_bit_for_bit(run, tiny):
    scorer = load_fold(tiny, run / "encoder", run / "fold0")
    tensors = load_file(run / "fold0" / "model.safetensors")
    assert weights_of(scorer).keys() == tensors.keys()
    for name, tensor in weights_of(scorer).items():
        assert torch.equal(tensor, tensors[name]), name
    assert not any(p.is_meta for p in [*scorer.parameters(), *scorer.buffers()])


def test_the_encoder_is_built_without_a_random_initialisation(run, tiny):
    empty = build_scorer(tiny, run / "encoder", init="empty")
    assert all(p.is_meta for p in empty.parameters())
    assert not any(b.is_meta for b in empty.encoder.buffers())


@pytest.mark.parametrize("damage", ["drop", "add", "reshape"])
def test_weights_that_do_not_fit_are_refused(run, tiny, tmp_path, damage):
    fold = copied(run / "fold0", tmp_path / "fold0")
    tensors = load_file(fold / "model.safetensors")
    if damage == "drop":
        del tensors["head.linear.bias"]
    elif damage == "add":
        tensors["extra"] = torch.zeros(1)
    else:
        tensors["head.linear.bias"] = torch.zeros(7)
    save_file(tensors, fold / "model.safetensors")
    with pytest.raises(Fb3Error, match="not the weights of this recipe's model"):
        load_fold(tiny, run / "encoder", fold)


def test_weights_of_another_pooling_are_refused(run):
    recipe = load_recipe(run / "recipe.yaml", ["model.pooling.kind=attention"])
    with pytest.raises(Fb3Error, match="missing"):
        load_fold(recipe, run / "encoder", run / "fold0")


def test_a_truncated_or_missing_file_is_named(run, tiny, tmp_path):
    fold = copied(run / "fold0", tmp_path / "fold0")
    path = fold / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(Fb3Error, match=r"model\.safetensors: cannot be read"):
        load_fold(tiny, run / "encoder", fold)
    path.unlink()
    with pytest.raises(Fb3Error, match="no such file"):
        load_fold(tiny, run / "encoder", fold)


def test_weights_beyond_fp16_are_refused():
    assert as_half({"a": torch.tensor([1.0])}, "f")["a"].dtype == torch.float16
    with pytest.raises(Fb3Error, match=r"f: \['a'\] hold weights beyond"):
        as_half({"a": torch.tensor([1e6])}, "f")
    bias = torch.tensor([50.01])  # fp16 has nothing between 50 and 50.03
    assert as_half({"head.linear.bias": bias}, "f")["head.linear.bias"].item() == bias.item()


def test_the_hash_of_ids_is_that_of_a_set():
    assert ids_hash(["a", "b"]) == ids_hash(["b", "a"]) != ids_hash(["ab"])
