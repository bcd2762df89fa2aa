"""Training in notebooks, whose sessions end: a run is taken from the inputs and left in the output folder."""

import shutil
import traceback
from collections.abc import Sequence
from pathlib import Path

from fb3.bundles.bundle import Bundle, read_bundle
from fb3.bundles.packing import write_bundle
from fb3.bundles.parity import replay
from fb3.errors import Fb3Error, Stopped
from fb3.recipe import Recipe, load_recipe
from fb3.runs.fold_json import is_begun, is_finished
from fb3.runs.save_folder import list_saves
from fb3.runs.scores import named_score, read_scores
from fb3.system.file_names import ENCODER, ENVIRONMENT, LOCK, RECIPE, RESUME, WEIGHTS, fold_folders
from fb3.system.files import atomic_folder, format_bytes
from fb3.system.kaggle import folders_with
from fb3.system.progress import say
from fb3.training.run import train

_NEXT = (
    "Save Version → Save & Run All; then, in notebooks/inference.ipynb, Add Input → Notebook Output → this notebook "
    "(or make a data set of the output, and attach that). Attach no second bundle"
)


def take_up(run: str | Path) -> Path | None:
    """Copies the run folder of an earlier session, attached as a notebook's output, to `run`, to go on there.

    Nothing happens where `run` is there already, and a run that was trained to its end is left where it is.

    Returns:
        The folder it came from; none where there is nothing to go on with.

    Raises:
        Fb3Error: several such folders are attached.
    """
    run = Path(run)
    begun = [] if run.exists() else [folder for folder in folders_with(ENVIRONMENT) if _unfinished(folder)]
    if len(begun) > 1:
        raise Fb3Error(
            f"{[str(folder) for folder in begun]}: more than one run to go on with; attach one of them, or join their "
            "folds with `fb3 merge`"
        )
    for folder in begun:
        with atomic_folder(run) as aside:
            for file in folder.rglob("*"):
                if file.is_file() and file.name != LOCK:
                    (aside / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, aside / file.relative_to(folder))  # without its mode: inputs are read-only
        say(f"{run}: goes on with the run in {folder}")
        return folder
    return None


def _unfinished(folder: Path) -> bool:
    """Whether it is a run folder of which something is trained or saved, but not everything."""
    return (folder / RECIPE).is_file() and is_begun(folder) and not _is_complete(folder)


def _is_complete(run: Path) -> bool:
    return (run / "scores.json").is_file() and read_scores(run / "scores.json")["complete"]


def train_session(
    recipe: Recipe,
    data: str | Path,
    run: str | Path,
    *,
    folds: Sequence[int] | None = None,
    debug: bool = False,
    stop_after: str | float | None = None,
) -> str:
    """Trains as `fb3.train` does, but once something is saved no error fails the notebook.

    Kaggle may drop the output of a notebook that fails, and the trained folds and saves would be lost with it.

    Returns:
        Why it ended early; empty where it did not.

    Raises:
        Fb3Error: the errors of `fb3.train`, where nothing is saved yet.
    """
    run, before = Path(run), _progress(Path(run))
    try:
        train(recipe, data, run, folds=folds, debug=debug, resume=True, stop_after=stop_after)
    except Stopped as stopped:
        return str(stopped)
    except Exception as error:
        if _progress(run) <= before:
            raise
        say(traceback.format_exc())
        return f"ERROR: {error or type(error).__name__}"
    return ""


def _progress(run: Path) -> set[Path]:
    """The trained folds, and the saves of the others."""
    folds = fold_folders(run)
    return {fold for fold in folds if is_finished(fold)} | {
        save for fold in folds for save in list_saves(fold / RESUME)
    }


def hand_over(run: str | Path, out: str | Path, *, source: str | Path | None = None) -> str:
    """Packs a run's trained folds, then deletes the files that no later session needs.

    The bundle shares the weights' bytes with the run folder. Once every fold is packed, the run folder keeps only its
    scores, predictions and log; until then it keeps everything needed to go on, but only the last save of a fold. If
    the bundle is refused, the text says so, nothing is deleted, and the notebook does not fail.

    Args:
        run: the run folder.
        out: the bundle's folder.
        source: the attached bundle whose wheels are carried on; none: it carries no wheels.

    Returns:
        Lines for a reader: what the output folder holds, and what to do with it.
    """
    run, out = Path(run), Path(out)
    complete = _is_complete(run)
    if not any(map(is_finished, fold_folders(run))):
        return f"{run}: no fold is trained to its end, so there is no bundle yet\n{_go_on(run)}"
    try:
        bundle = _packed(run, out, source)
    except Exception as error:
        if not isinstance(error, Fb3Error):
            say(traceback.format_exc())
        return f"NOT PACKED: {error}\n{run}: is whole; download it, and pack it with build_dataset.py"
    _slim(run, complete)
    scores, packed = read_scores(run / "scores.json"), bundle.manifest["runs"][0]
    named = named_score(scores["score"], load_recipe(run / RECIPE).metric, packed.get("caveats", []))
    columns = " ".join(f"{name} {value:.4f}" for name, value in scores["columns"].items())
    lines = [
        f"{named} | {columns}" if columns else named,
        f"{out}: the bundle, folds {packed['folds']}, {_size(out)}; {run}: {_size(run)}",
        f"to predict: {'' if complete else 'it can be used already. '}{_NEXT}",
    ]
    return "\n".join(lines if complete else [*lines, _go_on(run)])


def _go_on(run: Path) -> str:
    return (
        f"{run}: folds are left. To go on: save this version, attach its output to this notebook (Add Input → Notebook "
        "Output → this notebook), and run it again with the same recipe"
    )


def _packed(run: Path, out: Path, source: str | Path | None) -> Bundle:
    """The bundle: made now, or by an earlier call, after which only the bundle holds the run's weights."""
    if not any((fold / WEIGHTS).is_file() for fold in fold_folders(run)):
        return read_bundle(out)
    wheels = sorted((Path(source) / "wheels").glob("*")) if source else []
    return write_bundle([run], out, wheels=wheels, check=replay(None), link=True)


def _slim(run: Path, complete: bool) -> None:
    (run / LOCK).unlink(missing_ok=True)
    for fold in fold_folders(run):
        for save in list_saves(fold / RESUME)[1:]:
            shutil.rmtree(save)
        if complete:
            (fold / WEIGHTS).unlink(missing_ok=True)
    for folder in (ENCODER, "scratch") if complete else ():
        shutil.rmtree(run / folder, ignore_errors=True)


def _size(folder: Path) -> str:
    files = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return f"{format_bytes(sum(files))} in {len(files)} files"
