"""Writing a bundle: run folders, fb3's own source and wheels in one folder for a Kaggle data set."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

from fb3.bundles.bundle import FORMAT, Bundle, read_bundle
from fb3.bundles.kaggle_names import dataset_metadata, default_slug, safe_file_name
from fb3.ensembles.ensemble_file import Weights, packed_blend, packed_decision, packed_runs, packed_tests
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.runs.decide import ensemble_decision
from fb3.runs.fold_json import check_weights, is_finished
from fb3.runs.run_folder import Member, own_prepare
from fb3.runs.scores import caveats
from fb3.runs.shared_files import image_files, shared_folder
from fb3.system.disk_space import cannot_write, check_free_space, raises_disk_full
from fb3.system.file_names import (
    DECISION,
    FEATURES,
    FOLD_JSON,
    IMAGE_ENCODER,
    MANIFEST,
    METADATA,
    OOF,
    PREDICTIONS,
    PREPARE,
    RECIPE,
    VECTORS,
    WEIGHTS,
    fold_folders,
    fold_number,
)
from fb3.system.files import link_or_copy, read_json, sha256, write_json
from fb3.system.progress import say
from fb3.targets.build import target_of
from fb3.version import __version__

# The files that inference and a later look at the scores need. Left out are log.jsonl and environment.json, which hold
# local paths, scratch/, and the checkpoints of single evaluations.
RUN_FILES = (RECIPE, "folds.csv", OOF, "scores.json", DECISION)
_COLUMNS = {  # must be the same in all runs of a bundle, because test.csv is read once
    "data.id_column": lambda recipe: recipe.data.id_column,
    "data.target_columns": lambda recipe: recipe.data.target_columns,
    "task.classes": lambda recipe: target_of(recipe).columns,
    "data.prepare, by hash": lambda recipe: recipe.data.prepare and sha256(Path(recipe.data.prepare)),
    "data.files (test, sample, joins)": lambda recipe: recipe.data.files.model_copy(update={"train": ""}),
    "the texts' columns (data.text_column, data.text.template)": lambda recipe: recipe.data.text_columns(),
}
_CODE = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".py"}  # suffixes of files that may run code when read
_SOURCE = Path(__file__).parents[1]  # the package fb3
PackingStep = Callable[[list[Member], Path], dict[str, Any]]


@raises_disk_full("out")
def write_bundle(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    id: str | None = None,
    title: str | None = None,
    weights: Literal["fp32", "fp16"] = "fp32",
    wheels: Iterable[Path] = (),
    int8: PackingStep | None = None,
    check: PackingStep | None = None,
    source_only: bool = False,
    link: bool = False,
) -> Bundle:
    """Packs run folders with fb3's own source.

    Args:
        runs: run folders, or the folder of an ensemble, which packs its members with their weights; a run that is not
            trained to its end is packed with its finished folds.
        out: the bundle's folder; an older bundle there is replaced once the new one is whole.
        id: owner/slug of the data set.
        title: title of the data set; None: the slug.
        weights: fp16 halves the size.
        wheels: wheel and lock files to pack.
        int8: a step that adds scales for int8 to the packed folder; the manifest holds its result as "int8".
        check: a step that compares the runs with the packed folder, and raises to refuse it; the manifest holds its
            result as "parity".
        source_only: pack no run, only source and wheels, to train on a machine without internet.
        link: make hard links to the runs' fp32 weights instead of copies, where the file system can.

    Raises:
        Fb3Error: runs and source_only, or neither; a folder that is no run, has no trained fold or damaged weights;
            runs that predict different columns; an id or title that Kaggle refuses; `out` exists and is no bundle.
    """
    out = Path(out).resolve()
    if out.exists() and not _may_replace(out):
        raise Fb3Error(f"{out}: is there and is no bundle; choose another --out")
    if bool(runs) == source_only:
        raise Fb3Error(f"{out}: give either the run folders to pack, or source_only (--source-only)")
    paths = [Path(run) for run in runs]
    members, tests = _read_runs(packed_runs(paths, with_tests=True)), packed_tests(paths)
    if tests and not members:
        raise Fb3Error(f"{paths[0]}: all members with weight are files of predictions; a bundle wants a run at least")
    competition = _competition(members)
    metadata = dataset_metadata(id or f"your-name/{default_slug(out.name)}", title)
    wheels = list(wheels)  # an iterator may download them, so only once the runs are known to be good
    temporary, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    source = sum(file.stat().st_size for file in _SOURCE.rglob("*.py"))
    check_free_space(out, source + sum(_packed_bytes(member, weights, link) for member in members))
    try:
        for member in members:
            _pack_run(member, temporary / "runs" / member.name, weights, link)
        _pack_image_encoder(members, temporary)
        _pack_source(temporary / "fb3")
        for wheel in wheels:
            (temporary / "wheels").mkdir(exist_ok=True)
            shutil.copyfile(wheel, temporary / "wheels" / wheel.name)
        write_json(metadata, temporary / METADATA)
        if decision := packed_decision(paths) or _mean_decision(members):
            write_json(decision, temporary / DECISION)
        added = {"int8": int8(members, temporary)} if int8 else {}
        added |= packed_blend(paths)
        for number, (file, of_columns) in enumerate(tests.items()):
            (temporary / PREDICTIONS).mkdir(exist_ok=True)
            name = f"{PREDICTIONS}/{number}-{safe_file_name(file.name)}"
            shutil.copyfile(file, temporary / name)
            added.setdefault(PREDICTIONS, []).append({"file": name, "weights": of_columns})
        manifest = {
            "format": FORMAT,
            "fb3": __version__,
            "weights": weights,
            **({"competition": competition} if competition else {}),
            **added,
            "parity": check(members, temporary) if check else {"skipped": "not asked for"},
            "runs": [_manifest_entry(member) for member in members],
            "files": {
                path.relative_to(temporary).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            },
        }
        write_json(manifest, temporary / MANIFEST)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)  # left by a packing that was killed between the two renames
            out.rename(old)
        temporary.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise cannot_write(out, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Bundle(out, manifest)


def _may_replace(out: Path) -> bool:
    """Whether `out` is an empty folder or a bundle; other folders may hold a manifest.json too."""
    if not out.is_dir() or not any(out.iterdir()):
        return out.is_dir()
    try:
        return isinstance(read_bundle(out).manifest.get("files"), dict) and (out / "fb3").is_dir()
    except Fb3Error:
        return False


def _mean_decision(members: list[Member]) -> dict[str, Any] | None:
    return ensemble_decision({member.path: member.recipe for member in members}) if members else None


def _read_runs(paths: Mapping[Path, Weights | None]) -> list[Member]:
    members: list[Member] = []
    for path, weights in paths.items():
        if not (path / RECIPE).is_file():
            raise Fb3Error(f"{path}: no run folder (no recipe.yaml); give the --out of `fb3 train`")
        started = [folder for folder in fold_folders(path) if (folder / FOLD_JSON).is_file()]
        folds = list(filter(is_finished, started))
        if not folds:
            raise Fb3Error(f"{path}: no fold in it was trained to its end; run `fb3 train` first")
        if len(folds) < len(started):
            say(f"{path}: left out {sorted(f.name for f in set(started) - set(folds))}, not trained to their end")
        base, taken = safe_file_name(path.resolve().name), {member.name for member in members}
        if base != path.resolve().name:
            say(f"{path}: is {base!r} in the bundle; Kaggle refuses the name that it has")
        name = next(each for each in chain([base], (f"{base}-{n}" for n in count(2))) if each not in taken)
        own_prepare(path, recipe := load_recipe(path / RECIPE))
        members.append(Member(name, path, recipe, folds, weights))
        if weights and set(weights) != set(columns := target_of(recipe).columns):
            raise Fb3Error(f"{path}: predicts {columns}, its weights are for {list(weights)}; run `fb3 ensemble` again")
    files = {}
    for member in members:
        if frames := member.recipe.data.frames:
            images = image_files(member.path, member.recipe).values()
            if absent := [file for file in images if not file.is_file()]:
                raise Fb3Error(f"{absent[0]}: missing; copy the run again")
            encoders = sorted(map(sha256, images))
            files.setdefault((frames.files, *encoders), member.path)
    if len(files) > 1:
        places = " and ".join(f"{list(names)} for {path}" for (names, *_), path in files.items())
        raise Fb3Error(f"data.frames.files are {places}, or of different image encoders; pack these runs separately")
    for member in members[1:]:
        for what, columns in _COLUMNS.items():
            first, other = (columns(each.recipe) for each in (members[0], member))
            if first != other:
                raise Fb3Error(
                    f"{member.path}: {what} is {other}, in {members[0].path} it is {first}; pack them separately"
                )
    return members


def _competition(members: list[Member]) -> str | None:
    """Kaggle's name of the competition, as far as the runs' recipes say it; refuses two of them."""
    named = {member.recipe.competition: member.path for member in members if member.recipe.competition}
    if len(named) > 1:
        places = " and ".join(f"{path} for {slug}" for slug, path in named.items())
        raise Fb3Error(f"the runs were trained for several competitions: {places}; pack them separately")
    return next(iter(named), None)


def _manifest_entry(member: Member) -> dict[str, Any]:
    """A run's entry in the manifest; warns where its score is no cross-validation score."""
    if found := caveats(member.path, member.recipe):
        say(f"WARNING: {member.path}: its score is no CV: {'; '.join(found)}")
    folds = [fold_number(fold) for fold in member.folds]
    weights = {} if member.weights is None else {"weights": member.weights}
    return {"name": member.name, "folds": folds, **weights, **({"caveats": found} if found else {})}


def _pack_run(member: Member, out: Path, weights: str, link: bool) -> None:
    out.mkdir(parents=True)
    for name in RUN_FILES:
        if (member.path / name).is_file():
            _check_safe(member.path / name, member.path)
            shutil.copyfile(member.path / name, out / name)
    if file := own_prepare(member.path, member.recipe):
        _check_inside(file, member.path)
        shutil.copyfile(file, out / PREPARE)
        say(f"{file}: packed; it is code of one's own, which runs at inference (data.prepare)")
    for file in _shared(member):
        _check_safe(file, member.path)
        _copy(file, out / file.relative_to(member.path), member, weights, link)
    for fold in member.folds:
        info = read_json(fold / FOLD_JSON)
        info.pop("int8", None)  # a run that was taken from a bundle: its scales are measured anew
        check_weights(fold, "train this fold again")
        for name in [f"{fold.name}/{WEIGHTS}", *info.get("files", {})]:
            _check_inside(member.path / name, member.path)
            _copy(member.path / name, out / name, member, weights, link)
        info["sha256"] = sha256(out / fold.name / WEIGHTS)
        if "files" in info:
            info["files"] = {name: sha256(out / name) for name in info["files"]}
        write_json(info, out / fold.name / FOLD_JSON)


def _shared(member: Member) -> list[Path]:
    """The files that all folds of a run read, except vectors of training essays: a fold that needs some names them."""
    folder = member.path / shared_folder(member.recipe)
    return [file for file in sorted(folder.rglob("*")) if not file.is_dir() and file.stem != Path(VECTORS).stem]


def _copy(file: Path, to: Path, member: Member, weights: str, link: bool) -> None:
    """Copies a file; an encoder's weights in fp16 where that is wished, or as a link."""
    to.parent.mkdir(parents=True, exist_ok=True)
    of_feature = FEATURES in file.relative_to(member.path).parts
    of_encoder = file.name == WEIGHTS and (of_feature or not member.recipe.estimator)
    if to.exists():  # vectors that several folds name
        return
    if of_encoder and weights == "fp16":
        from fb3.runs.checkpoint import as_half, read_weights, write_weights

        write_weights(as_half(read_weights(file), str(file)), to)
    else:
        link_or_copy(file.resolve(), to) if link and of_encoder else shutil.copyfile(file, to)


def _packed_bytes(member: Member, weights: str, link: bool) -> int:
    """Bytes of a packed run's large files; linked weights take none."""
    folds = sum(file.stat().st_size for fold in member.folds for file in fold.rglob("*") if file.is_file())
    shared = sum(file.stat().st_size for file in _shared(member) if file.is_file())
    return shared + (folds // 2 if weights == "fp16" else 0 if link else folds)


def _check_safe(file: Path, run: Path) -> None:
    """Refuses pickles, code, and links to files outside the run: a run may come from somebody else."""
    if file.suffix.lower() in _CODE:
        raise Fb3Error(f"{file}: may run code when it is read, and inference does not need it; delete it")
    _check_inside(file, run)


def _check_inside(file: Path, run: Path) -> None:
    if not file.resolve().is_relative_to(run.resolve()):
        raise Fb3Error(f"{file}: a link out of the run folder; put the file itself there")


def _pack_image_encoder(members: Sequence[Member], out: Path) -> None:
    """Copies the image encoder of all runs, as it is: other weights would give other vectors."""
    for member in members:
        for name, file in image_files(member.path, member.recipe).items():
            _check_inside(file, member.path)
            (out / IMAGE_ENCODER).mkdir(exist_ok=True)
            shutil.copyfile(file, out / name)
        if image_files(member.path, member.recipe):
            return


def _pack_source(out: Path) -> None:
    shutil.copytree(_SOURCE, out, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
