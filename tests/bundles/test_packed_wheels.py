from fb3.bundles.packed_wheels import backends_of, wheels_of_backend
from tests.conftest import copied


def test_a_backend_whose_wheels_are_not_packed_is_told(run, tmp_path, capsys):
    assert backends_of([run, tmp_path]) == []
    other = copied(run, tmp_path / "other")
    recipe = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(recipe.replace("backend: auto", "backend: openvino"))
    assert backends_of([run, other]) == ["openvino"]
    assert wheels_of_backend("openvino", None, without=True) == []
    assert wheels_of_backend("onnx", None, without=False) == []
    said = capsys.readouterr().err
    assert "openvino: its wheels are not packed (--no-wheels); where they are missing, torch computes" in said
    assert "`fb3 wheels-lock IMAGE --backend onnx` writes one" in said
