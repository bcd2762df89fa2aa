"""The rules of the code's structure: the order of the stations, no circular imports, names, who may import what."""

import ast
import re
import sys
from collections import Counter
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

import fb3
from fb3.bundles.images import own_requirements

PACKAGE = Path(fb3.__file__).parent
# From the bottom up: a station imports only stations listed before it, and none on its own line.
STATIONS = [
    {"errors", "version"},
    {"system"},
    {"recipe"},
    {"targets"},
    {"data"},
    {"models"},
    {"tasks", "runs"},
    {"prediction"},
    {"ensembles"},
    {"training", "bundles", "pseudo_labels"},
    {"tuning", "submission", "verification", "upload", "sessions", "initial_recipe", "pretraining"},
    {"rehearsal"},
    {"demo", "commands"},
    {"cli"},
    {"__main__", "__init__"},
]
WITHOUT_TORCH = {"errors", "version", "system", "recipe", "targets"}
# The competition image lacks these packages, so no module that `infer` can reach may import them.
NOT_AT_INFERENCE = {"accelerate", "iterstrat", "kaggle", "optuna", "pytorch_optimizer", "ray", "sklearn"}
# Names that say nothing to somebody who has not read the code.
VAGUE_MODULES = {
    *("turns", "stage", "guard", "ahead", "parts", "bare", "backed", "checked", "layout", "cost", "worker", "sample"),
    "foldinfo",
}
VAGUE_CLASSES = {"Alone", "Shifted", "OneInput", "Kept", "Bare", "Backed", "Checked", "Consistent", "Pull"}
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, PACKAGE.parent / "build_dataset.py"]


def name_of(path: Path) -> str:
    """A module's dotted name below fb3, such as training.tricks.fgm; `__init__` for fb3's own `__init__`."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def station_of(module: str) -> str:
    return module.partition(".")[0]


def level_of(module: str) -> int:
    levels = [level for level, stations in enumerate(STATIONS) if station_of(module) in stations]
    assert len(levels) == 1, f"{module}: add its station to STATIONS"
    return levels[0]


@cache
def imports_of(path: Path, of_types: bool = False) -> frozenset[str]:
    """Every dotted name that a file imports, also inside functions; imports for type checkers alone with `of_types`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if not of_types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


KNOWN = {name_of(path): path for path in MODULES}


@cache
def inner_imports(module: str) -> frozenset[str]:
    """The modules of fb3 that a module imports, by their names below fb3."""
    named = {name.removeprefix("fb3.") for name in imports_of(KNOWN[module], of_types=True) if name.startswith("fb3.")}
    return frozenset(named & set(KNOWN)) - {module}


@pytest.mark.parametrize("module", KNOWN)
def test_imports_point_down_only(module):
    for other in inner_imports(module):
        same = station_of(other) == station_of(module)
        assert same or level_of(other) < level_of(module), f"{module} imports {other}, which is not below it"


def test_no_circles():
    done: set[str] = set()

    def visit(module, trail):
        assert module not in trail, f"a circle: {[*trail, module]}"
        if module not in done:
            for other in inner_imports(module):
                if not other.startswith(module + "."):  # an `__init__` hands on names of its own modules
                    visit(other, [*trail, module])
            done.add(module)

    for module in KNOWN:
        visit(module, [])


@pytest.mark.parametrize(
    ("package", "places"),
    [
        ("iterstrat", {"data.folds"}),
        ("accelerate", {"training"}),
        ("pyarrow", {"data.parquet"}),
        ("pydantic", {"recipe", "tuning.space"}),
        ("kaggle", {"upload"}),
        ("optuna", {"tuning.study"}),
        ("matplotlib", {"ensembles.frontier"}),
        ("sklearn", {"training.estimators.fitting", "pseudo_labels.near_duplicates"}),
        ("lightgbm", {"prediction.estimators.decision_functions"}),
        ("openvino", {"prediction.backends.openvino"}),
        ("onnx", {"prediction.backends.onnx"}),
        ("onnxruntime", {"prediction.backends.onnx"}),
    ],
)
def test_a_package_is_known_in_one_place(package, places):
    for module, path in KNOWN.items():
        if package in {name.partition(".")[0] for name in imports_of(path)}:
            assert any(module == place or module.startswith(place + ".") for place in places), module


@pytest.mark.parametrize("module", [module for module in KNOWN if station_of(module) in WITHOUT_TORCH])
def test_the_lowest_stations_import_no_torch_when_they_are_imported(module):
    top = {name.partition(".")[0] for node in ast.parse(KNOWN[module].read_text()).body for name in names(node)}
    assert not top & {"torch", "transformers"}


@cache
def loaded_with(module):
    """The names that a module imports when it is loaded, those of fb3 below it; imports for type checkers are none."""
    return {name.removeprefix("fb3.") for node in ast.parse(KNOWN[module].read_text()).body for name in names(node)}


def names(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def test_inference_imports_only_what_the_image_has():
    reached, waiting = set(), ["submission.inference"]
    while waiting:
        module = waiting.pop()
        if module in reached:
            continue
        reached.add(module)
        waiting += inner_imports(module)
        foreign = {name.partition(".")[0] for name in imports_of(KNOWN[module])} & NOT_AT_INFERENCE
        assert not foreign, f"infer reaches {module}, which imports {foreign}"
    assert {"prediction.inference_loop", "models.build", "data.tokens"} <= reached


def test_modules_are_loaded_with_required_packages_alone():
    """Others come with the test extra, and a plain installation lacks them."""
    required = {canonicalize_name(requirement.name) for requirement in own_requirements()}
    owners, foreign = packages_distributions(), {}
    for module in KNOWN:
        roots = {name.partition(".")[0] for name in loaded_with(module)} - sys.stdlib_module_names - {"fb3"}
        roots -= {name.partition(".")[0] for name in KNOWN}
        if more := {root for root in roots if not {canonicalize_name(each) for each in owners[root]} & required}:
            foreign[module] = more
    assert foreign == {
        "data.frames.picture_files": {"PIL"},
        "models.picture_flops": {"PIL"},
        "prediction.backends.onnx": {"onnx", "onnxruntime"},
        "prediction.backends.openvino": {"openvino"},
    }


def test_texts_need_no_pillow():
    """The modules that import it when they are loaded are imported inside functions alone, or by each other."""
    needing, found = {"PIL"}, True
    while found:
        found = {module for module in KNOWN if module not in needing and loaded_with(module) & needing}
        needing |= found
    pictures = {"data.frames.picture_files", "models.picture_flops"}
    assert needing - {"PIL"} == pictures | {"prediction.picture_vector_file", "prediction.picture_vectors"}


def test_only_one_module_knows_kaggles_paths_and_variables():
    for path in SOURCES:
        if path != KNOWN["system.kaggle"]:
            assert not re.search(r"/kaggle/|KAGGLE_[A-Z]|kaggle_secrets", path.read_text()), path


def test_the_loop_names_no_trick_task_or_data_set():
    text = KNOWN["training.loop"].read_text().lower()
    for word in ("fgm", "ema", "regression", "mcrmse", "essay_id", "feedback", "cohesion"):
        assert not re.search(rf"\b{word}\b", text), word


def test_no_pickles_and_no_remote_code():
    for path in SOURCES:
        assert not re.search(
            r"torch\.load\(|\bpickle\.|import pickle|joblib|trust_remote_code=True", path.read_text()
        ), path


def test_no_module_bears_the_name_of_a_public_function():
    assert not {part for module in KNOWN for part in module.split(".")} & set(fb3.__all__)
    for name in fb3.__all__:
        assert getattr(fb3, name) is not None
    with pytest.raises(AttributeError):
        fb3.nothing  # noqa: B018


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem == "__init__"], ids=name_of)
def test_packages_are_empty_or_hand_names_on(path):
    if path.parent == PACKAGE:
        return  # fb3's own hands names on by __getattr__, when they are first used
    tree = ast.parse(path.read_text())
    for node in tree.body:
        exports = isinstance(node, ast.Assign) and [target.id for target in node.targets] == ["__all__"]
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert isinstance(node, ast.ImportFrom) or exports or docstring, f"{path}: move line {node.lineno} to a module"


def test_names_say_what_a_module_or_class_holds():
    assert not VAGUE_MODULES & {part for module in KNOWN for part in module.split(".")}
    for path in MODULES:
        nodes = ast.walk(ast.parse(path.read_text()))
        classes = {node.name.lstrip("_") for node in nodes if isinstance(node, ast.ClassDef)}
        assert not VAGUE_CLASSES & classes, path


def test_classes_of_settings_end_in_settings():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())) if station_of(name_of(path)) == "recipe" else ():
            if isinstance(node, ast.ClassDef) and any("Settings" in ast.unparse(base) for base in node.bases):
                assert node.name.endswith("Settings") or node.name == "Recipe", f"{path}: {node.name}"


def test_tests_mirror_the_folders():
    tests = Path(__file__).parent
    defined = (ast.FunctionDef, ast.ClassDef)
    for path in MODULES:
        if any(isinstance(node, defined) for node in ast.parse(path.read_text()).body) and path.parent != PACKAGE:
            station = station_of(name_of(path))
            assert any((tests / station).rglob("test_*.py")), f"{path}: tests/{station} has no test file"
    for path in tests.rglob("test_*.py"):
        folder = path.parent.relative_to(tests)
        assert (PACKAGE / folder).is_dir(), f"{path}: fb3 has no folder {folder}"


def test_no_two_modules_share_a_name():
    shared = {stem: n for stem, n in Counter(path.stem for path in MODULES).items() if n > 1}
    assert set(shared) <= {"__init__", "build"}


def test_modules_and_tricks_stay_small():
    for path in MODULES:
        lines = len(path.read_text().splitlines())
        assert lines <= 350, f"{path}: {lines} lines; it may have two purposes"
        if "tricks" in path.parts and path.stem not in {"build", "trick"}:
            assert lines <= 80, path
