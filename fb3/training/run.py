"""A run: recipe and essays to a run folder with folds, out-of-fold predictions and scores."""

import importlib.metadata
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

import fb3
from fb3.checkpoint import FOLD_JSON, ids_hash, read_json, save_fold, sha256, write_json
from fb3.errors import Fb3Error
from fb3.essays import Encoded, read_essays, steps_per_epoch, tokenise
from fb3.folds import FoldSplit, fold_table, make_folds, read_folds
from fb3.metrics import Score, rmse_columns
from fb3.models import build_scorer, load_tokenizer
from fb3.models.encoder import export_encoder
from fb3.models.scratch import build_backbone
from fb3.prediction import Predictions, predict
from fb3.progress import say
from fb3.recipe import Recipe, load_recipe
from fb3.runtime import Precision, pick_device, pick_precision, secret, seed_everything
from fb3.submission import write_csv
from fb3.tasks import Task, build_task
from fb3.training.log import RunLog
from fb3.training.loop import Loop
from fb3.training.optim import build_optimizer, build_schedule
from fb3.training.tricks import Step, build_tricks

TRUTH = "true_"  # prefix of the truths' columns in oof.csv
DEBUG = ("data.sample=100", "folds.count=2", "train.epochs=2")
_VERSIONS = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "numpy", "pandas")


@dataclass(frozen=True)
class Run:
    """A trained run: its folder, the score of all out-of-fold predictions in it, and its folds' numbers."""

    path: Path
    score: Score
    folds: list[int]


@dataclass(frozen=True)
class Session:
    """What all folds of a run share."""

    recipe: Recipe
    essays: pd.DataFrame
    out: Path
    accelerator: Accelerator
    precision: Precision
    task: Task
    encoded: Encoded
    targets: np.ndarray
    log: RunLog


def train(
    recipe: Recipe | str | Path,
    data: str | Path,
    out: str | Path,
    *,
    folds: Sequence[int] | None = None,
    debug: bool = False,
) -> Run:
    """Trains folds on `data`/train.csv into the run folder `out`.

    A run folder of the same recipe takes further folds; a fold that is there already is never overwritten.

    Args:
        recipe: a recipe, a YAML file or a built-in name.
        data: the folder with train.csv.
        out: the run folder.
        folds: which ones; none: all.
        debug: a hundred essays, two folds, two epochs.

    Raises:
        Fb3Error: what is wrong with recipe, data or folder, or a loss that became NaN.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    recipe = _debug(recipe) if debug else recipe
    data, out = Path(data), Path(out)
    essays = _sampled(read_essays(data / "train.csv", recipe.data, recipe.task), recipe)
    splits = _splits(recipe, essays, out)
    if debug:
        splits = splits[:2]
    chosen = _chosen(splits, folds, out)
    session = open_session(recipe, essays, out)
    if session.accelerator.is_main_process:
        _write_head(session, data, splits)
    for split in chosen:
        predictions = _train_fold(session, split)
        if session.accelerator.is_main_process:
            _add_out_of_fold(session, split, predictions)
        session.accelerator.wait_for_everyone()
    session.accelerator.end_training()
    return _finish(session)


def train_fold(recipe: Recipe, essays: pd.DataFrame, split: FoldSplit, out: str | Path) -> Predictions:
    """Trains one fold into `out`/fold<n> and returns its out-of-fold predictions (not clipped).

    Args:
        recipe: what to train.
        essays: all essays with scores, as `read_essays` returns them.
        split: one of `make_folds(essays, recipe)`.
        out: the run folder; it gets encoder/ and fold<n>/.
    """
    session = open_session(recipe, essays, Path(out))
    predictions = _train_fold(session, split)
    session.accelerator.end_training()
    return predictions


def open_session(recipe: Recipe, essays: pd.DataFrame, out: Path) -> Session:
    """Finds the device, writes the encoder folder and tokenises the essays."""
    device = pick_device()
    precision = pick_precision(recipe.train.precision, device)
    accelerator = _accelerator(recipe, device, precision, out)
    if accelerator.is_main_process:
        _write_encoder(recipe, essays[recipe.data.text_column], out)
    accelerator.wait_for_everyone()
    tokenizer, pad = load_tokenizer(out / "encoder")
    return Session(
        recipe=recipe,
        essays=essays,
        out=out,
        accelerator=accelerator,
        precision=precision,
        task=build_task(recipe),
        encoded=tokenise(essays[recipe.data.text_column].tolist(), tokenizer, pad, recipe.data),
        targets=essays[list(recipe.data.target_columns)].to_numpy(np.float32),
        log=RunLog(out / "log.jsonl", accelerator.is_main_process, lambda v, step: accelerator.log(v, step=step)),
    )


def _accelerator(recipe: Recipe, device: torch.device, precision: Precision, out: Path) -> Accelerator:
    AcceleratorState._reset_state()  # it would keep the precision of an earlier run in this process
    if "wandb" in recipe.train.trackers:
        _prepare_wandb()
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=device.type == "cpu",
        # Some encoders have parameters that a plain forward leaves out (XLNet's mask, Longformer's global attention).
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        log_with=list(recipe.train.trackers) or None,
        project_dir=out,
    )
    if recipe.train.trackers:
        accelerator.init_trackers("fb3", config={"recipe": recipe.to_yaml()})
    return accelerator


def _prepare_wandb() -> None:
    import os

    if key := secret("WANDB_API_KEY"):
        os.environ["WANDB_API_KEY"] = key
    else:
        os.environ.setdefault("WANDB_MODE", "offline")


def _debug(recipe: Recipe) -> Recipe:
    settings = recipe.model_dump(mode="json")
    for override in DEBUG:
        path, value = override.split("=")
        group, key = path.split(".")
        settings[group][key] = int(value)
    settings["folds"]["holdout"] = None
    return Recipe.from_mapping(settings, "debug mode")


def _sampled(essays: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    size = recipe.data.sample
    if size is None or size >= len(essays):
        return essays
    rows = np.random.default_rng(recipe.folds.seed).permutation(len(essays))[:size]
    return essays.iloc[np.sort(rows)].reset_index(drop=True)


def _splits(recipe: Recipe, essays: pd.DataFrame, out: Path) -> list[FoldSplit]:
    """The splits of a run folder that is there already, else new ones."""
    if out.is_dir() and any(out.iterdir()):
        if not (out / "recipe.yaml").is_file():
            raise Fb3Error(f"{out}: not empty and no run folder (no recipe.yaml); choose another --out")
        saved = load_recipe(out / "recipe.yaml")
        if saved != recipe:
            differ = [name for name in type(recipe).model_fields if getattr(saved, name) != getattr(recipe, name)]
            raise Fb3Error(f"{out}: holds a run of another recipe (they differ in {differ}); choose another --out")
        return read_folds(out / "folds.csv", essays, recipe.data.id_column)
    return make_folds(essays, recipe)


def _chosen(splits: list[FoldSplit], folds: Sequence[int] | None, out: Path) -> list[FoldSplit]:
    known = {split.fold: split for split in splits}
    wanted = list(known) if folds is None else list(dict.fromkeys(folds))
    if unknown := [fold for fold in wanted if fold not in known]:
        raise Fb3Error(f"--folds: no fold {unknown}; there are {list(known)}")
    done = [fold for fold in wanted if (out / f"fold{fold}" / FOLD_JSON).is_file()]
    if done:
        left = [fold for fold in known if not (out / f"fold{fold}" / FOLD_JSON).is_file()]
        mend = f"give --folds {','.join(map(str, left))}" if left else "choose another --out"
        raise Fb3Error(f"{out}: folds {done} are trained already; {mend}")
    return [known[fold] for fold in wanted]


def _write_encoder(recipe: Recipe, texts: pd.Series, out: Path) -> None:
    if recipe.model.backbone == "scratch" and not (out / "scratch").is_dir():
        build_backbone(recipe.model.scratch, texts, out / "scratch", recipe.train.seed)
    (out / "encoder").mkdir(parents=True, exist_ok=True)
    export_encoder(_resolved(recipe, out).model, out / "encoder")


def _resolved(recipe: Recipe, out: Path) -> Recipe:
    """The recipe with `backbone: scratch` turned into the folder that was built for it."""
    if recipe.model.backbone != "scratch":
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"backbone": str(out / "scratch")})})


def _write_head(session: Session, data: Path, splits: list[FoldSplit]) -> None:
    """What a run folder holds before the first step."""
    recipe, out = session.recipe, session.out
    (out / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    write_csv(fold_table(session.essays, splits, recipe.data.id_column), out / "folds.csv")
    environment = {
        "versions": versions(),
        "device": torch.cuda.get_device_name() if session.accelerator.device.type == "cuda" else platform.machine(),
        "precision": session.precision,
        "processes": session.accelerator.num_processes,
        "seed": recipe.train.seed,
        "data": str(data.resolve()),
        "train_sha256": sha256(data / "train.csv"),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(environment, out / "environment.json")


def versions() -> dict[str, str]:
    """Versions of python, fb3 and the libraries that decide a result."""
    found = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return {"python": platform.python_version(), "fb3": fb3.__version__, **found}


def _train_fold(session: Session, split: FoldSplit) -> Predictions:
    recipe, accelerator = session.recipe, session.accelerator
    seed = recipe.train.seed + split.fold
    seed_everything(seed)
    scorer = build_scorer(_resolved(recipe, session.out), session.out / "encoder", init="pretrained")
    scorer.head.start_at(torch.from_numpy(session.targets[split.train_rows].mean(0)))
    scorer.to(accelerator.device)
    tricks = build_tricks(recipe, scorer)
    optimizer = build_optimizer(scorer, recipe.optimizer, scaled=session.precision == "fp16")
    per_epoch = steps_per_epoch(len(split.train_rows), recipe.train.batch_size, recipe.train.accumulation)
    steps = per_epoch * recipe.train.epochs
    keeper = _Keeper(session, split, seed)
    loop = Loop(
        accelerator,
        scorer,
        optimizer,
        build_schedule(optimizer, recipe.schedule, steps),
        task=session.task,
        tricks=tricks,
        encoded=session.encoded,
        targets=session.targets,
        settings=recipe.train,
        optimizer_settings=recipe.optimizer,
        evaluate=keeper.evaluate,
        log=session.log,
    )
    session.log.event(
        "fold",
        f"fold {split.fold}: {len(split.train_rows)} essays to train on, {len(split.valid_rows)} to validate, "
        f"{steps} steps, {accelerator.device.type} {session.precision}",
        fold=split.fold,
        train=len(split.train_rows),
        valid=len(split.valid_rows),
        steps=steps,
    )
    loop.run(split.fold, split.train_rows, steps, seed)
    accelerator.free_memory()
    if keeper.best is None:
        raise Fb3Error(f"fold {split.fold}: no evaluation gave a score; nothing was kept. Try train.precision=fp32")
    return keeper.best


class _Keeper:
    """Evaluates a fold and keeps its best checkpoint and predictions."""

    def __init__(self, session: Session, split: FoldSplit, seed: int) -> None:
        self.session, self.split, self.seed = session, split, seed
        self.start = time.monotonic()
        self.best: Predictions | None = None
        self.best_score: Score | None = None

    def evaluate(self, step: Step) -> None:
        session, split = self.session, self.split
        predictions = self._predict(step)
        truth = session.targets[split.valid_rows]
        score = step.score = session.task.score(truth, predictions.values)
        best = score.better_than(self.best_score)
        epoch = step.epoch + 1
        session.log.evaluation(split.fold, epoch, step.number, score, best, time.monotonic() - self.start)
        self._warn_of_collapse(predictions, truth)
        if best:
            self.best, self.best_score = predictions, score
        folder = session.out / f"fold{split.fold}"
        if session.accelerator.is_main_process:
            info = self._info(step, score)
            if best:
                save_fold(folder, step.scorer, info)
            if session.recipe.train.keep == "all":
                save_fold(folder / f"step{step.number}", step.scorer, info)

    def _predict(self, step: Step) -> Predictions:
        """All validation essays, shared out among the processes."""
        session, accelerator = self.session, self.session.accelerator
        rows = self.split.valid_rows
        mine = rows[accelerator.process_index :: accelerator.num_processes]
        part = predict(
            step.scorer,
            session.task,
            session.encoded,
            session.essays[session.recipe.data.id_column].to_numpy(),
            rows=mine,
            precision=session.precision,
            token_budget=session.recipe.predict.token_budget,
            name=f"fold {self.split.fold} validation",
            shown=accelerator.is_main_process and accelerator.num_processes == 1,
        )
        if accelerator.num_processes == 1:
            return part
        parts = gather_object([(mine, part)])
        order = np.argsort(np.concatenate([part_rows for part_rows, _ in parts]))
        return Predictions(
            np.concatenate([p.ids for _, p in parts])[order],
            np.concatenate([p.values for _, p in parts])[order],
            part.columns,
            part.name,
        )

    def _warn_of_collapse(self, predictions: Predictions, truth: np.ndarray) -> None:
        if len(truth) > 1 and (predictions.values.std(0) < 0.05 * truth.std(0)).all():
            self.session.log.event(
                "warning",
                f"warning: fold {self.split.fold} predicts nearly the same for every essay; the model has learned the "
                "mean or collapsed: try a lower optimizer.encoder_rate, or more epochs",
                fold=self.split.fold,
                reason="predictions without spread",
            )

    def _info(self, step: Step, score: Score) -> dict:
        session, split = self.session, self.split
        ids = session.essays[session.recipe.data.id_column].to_numpy()[split.valid_rows]
        means = session.targets[split.train_rows].mean(0).tolist()
        return {
            "fold": split.fold,
            "score": score.overall,
            "columns": score.columns,
            "epoch": step.epoch + 1,
            "step": step.number,
            "seed": self.seed,
            "target_means": dict(zip(session.task.columns, means, strict=True)),
            "valid_ids_sha256": ids_hash(ids),
            "versions": versions(),
        }


def _add_out_of_fold(session: Session, split: FoldSplit, predictions: Predictions) -> None:
    """Adds a fold to oof.csv (id, fold, truths, clipped predictions) and computes scores.json anew from it."""
    recipe, path = session.recipe, session.out / "oof.csv"
    columns, identifier = list(recipe.data.target_columns), recipe.data.id_column
    table = pd.DataFrame(session.task.clip(predictions.values), columns=columns)
    truth = pd.DataFrame(session.targets[split.valid_rows], columns=columns).add_prefix(TRUTH)
    table = pd.concat([truth, table], axis=1)
    table.insert(0, identifier, predictions.ids)
    table.insert(1, "fold", split.fold)
    if path.is_file():
        table = pd.concat([pd.read_csv(path, dtype={identifier: str}, keep_default_na=False), table])
    write_csv(table.sort_values(["fold", identifier]), path)
    write_json(scores_of(session.out, recipe), session.out / "scores.json")


def scores_of(run: Path, recipe: Recipe) -> dict:
    """The content of scores.json, from oof.csv alone: the score of all rows, and of each fold."""
    columns = list(recipe.data.target_columns)
    table = pd.read_csv(run / "oof.csv", dtype={recipe.data.id_column: str}, keep_default_na=False)

    def score(rows: pd.DataFrame) -> dict:
        each = rmse_columns(rows[[TRUTH + c for c in columns]].to_numpy(), rows[columns].to_numpy())
        return {"score": float(each.mean()), "columns": dict(zip(columns, each.tolist(), strict=True)), "essays": len(rows)}

    folds = {str(n): score(rows) for n, rows in table.groupby("fold")}
    total = len(pd.read_csv(run / "folds.csv", dtype=str).query("fold != '-1'"))
    return {**score(table), "complete": len(table) == total, "folds": folds}


def _finish(session: Session) -> Run:
    session.accelerator.wait_for_everyone()
    scores = read_json(session.out / "scores.json")
    folds = sorted(int(n) for n in scores["folds"])
    kind = "CV" if scores["complete"] else f"out-of-fold score of folds {folds}"
    columns = " ".join(f"{name} {value:.4f}" for name, value in scores["columns"].items())
    session.log.event(
        "run", f"{kind} {scores['score']:.4f} over {scores['essays']} essays | {columns} | {session.out}", **scores
    )
    if session.accelerator.is_main_process and not scores["complete"]:
        say(f"train the other folds with --folds, or pack these: python build_dataset.py {session.out} --out bundle")
    return Run(session.out, Score(scores["score"], scores["columns"]), folds)
