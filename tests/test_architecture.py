"""The house's rules, enforced: floors, circles, who knows what."""

import ast
import re
from pathlib import Path

import pytest

import fb3

PACKAGE = Path(fb3.__file__).parent
FLOORS = [
    {
        "recipe",
        "system.prefetch",
        "errors",
        "system.files",
        "system.file_contents",
        "models.backbone_files",
        "targets.metrics",
        "system.progress",
        "system.disk_space",
        "system.kaggle",
        "submission.submission_file",
        "bundles.wheels",
        "demo.synthetic",
        "version",
        "system.file_names",
        "system.folder_lock",
        "bundles.metadata",
        "system.git",
        "bundles.images",
        "rehearsal.import_guard",
        "submission.summary",
    },
    {
        "models.attached_backbone",
        "data.essays",
        "data.texts",
        "data.text_statistics",
        "data.tokens",
        "data.tokenizer",
        "data.batches",
        "models.build",
        "models.flops",
        "augmentation",
    },
    {
        "tasks.build",
        "prediction.inference_loop",
        "prediction.token_budget",
        "prediction.backends.choose",
        "runs.checkpoint",
        "runs.fold_json",
        "prediction.predictions",
        "runs.scores",
    },
    {
        "training.run_log",
        "training.loop",
        "training.memory",
        "training.optimizer",
        "training.tricks.build",
        "training.session",
        "training.fold",
        "training.soup",
        "training.state",
        "training.stop",
        "training.saves",
        "bundles.bundle",
        "bundles.packing",
        "submission.workers",
        "data.folds",
    },
    {
        "training.run",
        "runs.joining",
        "tuning",
        "submission.inference",
        "submission.form",
        "rehearsal.rehearsal",
        "rehearsal.report",
        "rehearsal.hidden_rows",
        "bundles.tolerance",
        "bundles.parity",
        "bundles.int8_scales",
        "verification.check",
        "rehearsal.notebooks",
        "rehearsal.inside_sandbox",
        "upload",
        "submission.fold_queue",
        "sessions.train_notebook",
        "submission.background",
    },
    {"cli", "demo.demo", "__main__"},
]
TOP = {"__init__", "training.__init__"}  # names only
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, PACKAGE.parent / "build_dataset.py"]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


def floor_of(module: str) -> int | None:
    """The floor of a dotted name below fb3, such as "training.tricks.fgm"."""
    for number, rooms in enumerate(FLOORS):
        if any(module == room or module.startswith(room + ".") for room in rooms):
            return number
    return None


def imports_of(path: Path) -> set[str]:
    """Every dotted name that a file imports, also inside functions, without those for type checkers."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inner_imports(path: Path) -> set[str]:
    """The modules of fb3 that a file imports, by their names below fb3."""
    known = {name_of(p).removesuffix(".__init__") for p in MODULES}
    named = {name.removeprefix("fb3.") for name in imports_of(path) if name.startswith("fb3.")}
    return {name for name in named if name in known} - {name_of(path).removesuffix(".__init__")}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_has_a_floor_and_imports_only_point_down(path):
    module = name_of(path)
    if module in TOP or not path.read_text():
        return
    floor = floor_of(module)
    assert floor is not None, f"{module}: give it a floor"
    for other in inner_imports(path) - {"training"}:
        assert floor_of(other) <= floor, f"{module} imports {other}, which is above it"


def test_no_circles():
    graph = {name_of(p).removesuffix(".__init__"): inner_imports(p) for p in MODULES}
    done: set[str] = set()

    def visit(module, trail):
        assert module not in trail, f"a circle: {[*trail, module]}"
        if module not in done:
            for other in graph[module]:
                if not other.startswith(module + "."):  # a package's face names its own pieces
                    visit(other, [*trail, module])
            done.add(module)

    for module in graph:
        visit(module, [])


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("iterstrat", {"data.folds"}),
        ("accelerate", {"training."}),
        ("pydantic", {"recipe."}),
        ("kaggle", {"upload"}),
        ("optuna", {"tuning.study"}),
        ("openvino", {"prediction.backends.openvino"}),
        ("onnx", {"prediction.backends.onnx"}),
        ("onnxruntime", {"prediction.backends.onnx"}),
        ("disentangled_flash", {"models.kernels.flash_attention"}),
    ],
)
def test_a_package_is_known_in_one_place(package, rooms):
    for path in MODULES:
        if package in {name.split(".")[0] for name in imports_of(path)}:
            assert any(name_of(path) == room or name_of(path).startswith(room) for room in rooms), path


def test_the_recipe_and_the_ground_floor_know_no_torch_when_imported():
    for path in MODULES:
        if floor_of(name_of(path)) == 0:
            top = {n.split(".")[0] for node in ast.parse(path.read_text()).body for n in names(node)}
            assert "torch" not in top, path
            assert "transformers" not in top, path


def names(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def test_only_runtime_knows_kaggles_paths_and_variables():
    for path in SOURCES:
        if path.name != "runtime.py":
            assert not re.search(r"/kaggle/|KAGGLE_[A-Z]|kaggle_secrets", path.read_text()), path


def test_the_loop_names_no_trick_task_or_data_set():
    text = (PACKAGE / "training" / "loop.py").read_text().lower()
    for word in ("fgm", "ema", "regression", "mcrmse", "essay_id", "feedback", "cohesion"):
        assert not re.search(rf"\b{word}\b", text), word


def test_no_pickles_and_no_remote_code():
    for path in SOURCES:
        assert not re.search(
            r"torch\.load\(|\bpickle\.|import pickle|joblib|trust_remote_code=True", path.read_text()
        ), path


def test_no_submodule_bears_the_name_of_a_public_function():
    modules = {p.stem for p in PACKAGE.iterdir()}
    assert not modules & set(fb3.__all__)
    for name in fb3.__all__:
        assert getattr(fb3, name) is not None
    with pytest.raises(AttributeError):
        fb3.nothing  # noqa: B018


def test_modules_and_tricks_stay_small():
    for path in MODULES:
        lines = len(path.read_text().splitlines())
        assert lines <= 350, f"{path}: {lines} lines, two purposes?"
        if "tricks" in path.parts and path.stem not in {"__init__", "base"}:
            assert lines <= 80, path
