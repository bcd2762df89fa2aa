"""Verifies a run folder or a bundle: every hash, and that the out-of-fold scores recompute.

It only reads, and goes on after a fault. Hashes and scores need no torch; saves and repeated predictions do.
"""

from pathlib import Path
from typing import Any

from fb3.bundles.bundle import SOURCE_ONLY, Bundle, read_bundle
from fb3.bundles.wheels import locked
from fb3.errors import Fb3Error
from fb3.runs.fold_json import digest_of
from fb3.runs.provenance import changed_files, read_provenance
from fb3.runs.run_folder import training_file
from fb3.system.file_names import ENSEMBLE, ENVIRONMENT, FOLD_JSON, MANIFEST, PROVENANCE, RECIPE, fold_folders
from fb3.system.files import read_json
from fb3.verification.check_run import check_run
from fb3.verification.findings import Report, RunCheck


def verify(path: str | Path, data: str | Path | None = None, *, essays: int = 0) -> Report:
    """Checks a run folder or a bundle.

    Args:
        path: a run folder, finished or not, or a bundle.
        data: the folder with the run's train.csv; None: the one that environment.json names, where it still exists.
        essays: how many essays of each finished fold are predicted again from the weights and compared with oof.csv.

    Returns:
        The report; it passed where there is no fault. A check that was impossible is named in it, and is no fault.

    Raises:
        Fb3Error: `path` is neither, or `data` lacks the run's training essays.
    """
    path, data = Path(path), None if data is None else Path(data)
    if (path / ENSEMBLE).is_file():
        raise Fb3Error(f"{path}: an ensemble, which holds weights alone; verify its runs, or the bundle of them")
    if (path / PROVENANCE).is_file():
        report = Report(path, "encoder")
        with report.check(f"{PROVENANCE}: each file by hash, the tokenizer and the weights fit the config"):
            for fault in changed_files(path):
                report.add("FAULT", fault)
            if report.passed:
                _check_encoder(path)
        seen = read_provenance(path)
        report.add("note", f"it has seen {len(seen['texts'])} texts, and {len(seen['held_out'])} chose its best state")
    elif (path / MANIFEST).is_file():
        report = Report(path, "bundle")
        _check_bundle(report, read_bundle(path), data, essays)
    elif (path / RECIPE).is_file() or any((folder / FOLD_JSON).is_file() for folder in fold_folders(path)):
        report, recorded = Report(path, "run"), dict[str, Any]()
        _check_data(data, path)
        with report.check(ENVIRONMENT):
            recorded = dict(read_json(path / ENVIRONMENT))
        check_run(RunCheck(report, path, data or _recorded_folder(recorded, path), recorded, digest_of, essays))
    else:
        raise Fb3Error(
            f"{path}: neither a run folder (no {RECIPE}) nor a bundle (no {MANIFEST}) nor a pretrained encoder (no "
            f"{PROVENANCE})"
        )
    return report


def _check_encoder(folder: Path) -> None:
    """Loads an encoder as a run would."""
    import transformers

    from fb3.data.tokenizer import load_tokenizer
    from fb3.models.backbone import pretrained_encoder
    from fb3.recipe.model import ModelSettings

    transformers.utils.logging.disable_progress_bar()
    load_tokenizer(folder)
    pretrained_encoder(ModelSettings(backbone=str(folder)), folder)


def _check_data(data: Path | None, run: Path) -> None:
    if data and not (file := training_file(run, data)).is_file():
        raise Fb3Error(f"{file}: no such file; give the folder of the run's essays with --data DIR")


def _recorded_folder(recorded: dict[str, Any], run: Path) -> Path | None:
    folder = recorded.get("data")
    return Path(folder) if isinstance(folder, str) and training_file(run, Path(folder)).is_file() else None


def _check_bundle(report: Report, bundle: Bundle, data: Path | None, essays: int) -> None:
    files: dict[Path, str] = {}
    runs: list[tuple[str, Path, list[Path]]] = []
    with report.check(f"{MANIFEST}: each file by size and hash, no other there"):
        runs = list(bundle.runs())
        files = {bundle.path / name: entry["sha256"] for name, entry in bundle.manifest["files"].items()}
        for fault in bundle.faults():
            report.add("FAULT", str(fault))
        for name in bundle.extra():
            report.add("FAULT", f"{bundle.path / name}: not in {MANIFEST}; delete it, or build the bundle anew")
    wheels = {digest for file, digest in files.items() if file.suffix == ".whl"}
    locks = [file for file in files if file.suffix == ".lock" and file.parent.name == "wheels"]
    for lock in locks:
        with report.check(f"wheels/{lock.name}: the wheels that it names"):
            if absent := sorted(name for name, digest in locked(lock).items() if digest not in wheels):
                raise Fb3Error(f"{lock}: no wheel of {absent} with its hash in the bundle; build the bundle anew")
    if not locks:
        report.add("note", "wheels: none packed")
    if not bundle.manifest["runs"]:
        report.add("note", f"runs: none; it {SOURCE_ONLY}")
    half = bundle.manifest.get("weights") == "fp16"
    for name, path, folds in runs:
        _check_data(data, path)
        check_run(RunCheck(report, path, data, None, files.get, essays, f"runs/{name}/", folds, half))
