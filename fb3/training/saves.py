"""Saves of a fold that trains, from which a stopped one goes on.

    fold<n>/resume/<step>/    state.json, state.safetensors, and the best checkpoint so far

A save is written aside, brought to the disk, and renamed; it becomes visible whole. The one before stays until the next
is written. Kept is all that the rest of the training depends on (`fb3.training.state`), so that on a CPU it ends as it
would have ended, bit for bit.
"""

import shutil
import time
from pathlib import Path
from typing import Protocol

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fb3.data.folds import FoldSplit
from fb3.errors import DiskFull, Fb3Error, Stopped
from fb3.recipe import Recipe
from fb3.recipe.load import differences
from fb3.runs.fold_json import ids_hash
from fb3.runs.save_folder import STATE, TENSORS, Tree, found, read_save, sealed, split
from fb3.system.disk_space import free_bytes, unreadable_source
from fb3.system.file_names import FOLD_JSON, RESUME, WEIGHTS
from fb3.system.files import atomic_file, atomic_folder, format_bytes, link_or_copy, sha256, write_text
from fb3.system.progress import say
from fb3.training.loop import Loop
from fb3.training.session import Session, versions
from fb3.training.state import load_own, load_shared, own_state, shared_state

_AGREE = 5  # steps between two looks, where several processes must agree: each waits for the GPU
_SPARE = 2**20  # bytes for names, folders and the log


class _Keeper(Protocol):
    """What else a fold remembers: its best evaluation."""

    def state(self) -> Tree: ...

    def load(self, state: Tree) -> None: ...


class Saves:
    """Saves one fold while it trains, stops it when asked, and brings it back.

    Args:
        session: of the run; nothing is saved where it knows no files.
        fold: its split.
        keeper: of the fold's best evaluation.
        steps: optimizer steps in all.
    """

    def __init__(self, session: Session, fold: FoldSplit, keeper: _Keeper, steps: int) -> None:
        self.session, self.keeper, self.steps = session, keeper, steps
        self.fold = fold.fold
        self.home = session.out / f"fold{fold.fold}"
        self.folder = self.home / RESUME
        self.last = time.monotonic()  # when it was saved
        ids = session.essays[session.recipe.data.id_column].to_numpy()
        self.made_of = {
            "recipe": session.recipe.model_dump(mode="json"),
            "files": session.digests,
            "fold": [ids_hash(ids[fold.train_rows]), ids_hash(ids[fold.valid_rows])],
            "processes": session.accelerator.num_processes,
            "precision": session.precision,
            "device": session.accelerator.device.type,
            "versions": versions(),
        }

    def pause(self, loop: Loop) -> None:
        """Saves where that is due.

        Raises:
            Stopped: it was asked for; the fold is saved.
            DiskFull: there is none for the save.
        """
        if self.session.digests is None:
            return
        settings, number = self.session.recipe.train, loop.step.number
        minutes, steps = settings.save_every_minutes, settings.save_every_steps
        reason = self.session.stop.reason
        timed = minutes is not None and time.monotonic() - self.last >= 60 * minutes
        stopping, timed = self._agreed(loop, bool(reason), timed)
        if stopping or timed or (steps is not None and number % steps == 0):
            self.save(loop)
        if stopping:
            saves = found(self.folder)
            where = f"is saved after step {saves[0].name} of {self.steps} in {self.folder}" if saves else "has no save"
            raise Stopped(f"{reason or 'stopped'}: fold {self.fold} {where}; the same command goes on")

    def _agreed(self, loop: Loop, stopping: bool, timed: bool) -> tuple[bool, bool]:
        """What any process wants, all do."""
        accelerator = self.session.accelerator
        if accelerator.num_processes == 1:
            return stopping, timed
        if loop.step.number % _AGREE:
            return False, False
        wishes = accelerator.reduce(torch.tensor([stopping, timed], device=accelerator.device).float(), "sum").tolist()
        return wishes[0] > 0, wishes[1] > 0

    def save(self, loop: Loop) -> None:
        """Writes a save, on the main process.

        Raises:
            DiskFull: it cannot be written; says how much it needs. The last save is whole.
        """
        started, accelerator = time.monotonic(), self.session.accelerator
        several, tensors, failed = accelerator.num_processes > 1, dict[str, Tensor](), None
        own = split(own_state(loop), tensors, f"own/{accelerator.process_index}")
        every = gather_object([(own, tensors)]) if several else [(own, tensors)]
        if accelerator.is_main_process:
            for _, held in every:
                tensors |= held
            state = {
                "shared": split(shared_state(loop), tensors, "shared"),
                "keeper": split(self.keeper.state(), tensors, "keeper"),
                "own": [each for each, _ in every],
                "log": self.session.log.lines(self.fold),
            }
            losses = [tensor for name, tensor in tensors.items() if name.endswith("window/losses")]
            if all(torch.isfinite(values).all() for values in losses):  # else their window's end says what is wrong
                failed = self._write(loop.step.number, state, tensors, started)
        if several:
            failed = next(filter(None, gather_object([failed])), None)
        if failed:
            raise DiskFull(failed)
        self.last = time.monotonic()

    def _write(self, number: int, state: Tree, tensors: dict[str, Tensor], started: float) -> str | None:
        """Returns what went wrong."""
        text = sealed({"made_of": self.made_of, "state": state, "tensors": ""})
        need = sum(tensor.nbytes for tensor in tensors.values()) + len(text) + _SPARE
        where = f"fold {self.fold}: no save after step {number}: it needs {format_bytes(need)}"
        whole = found(self.folder)
        still = f"the save of step {whole[0].name} is whole" if whole else "there is none yet"
        mend = f"{still}. Make room, and the same command goes on"
        try:
            for old in whole[1:]:
                shutil.rmtree(old)
            self.folder.mkdir(parents=True, exist_ok=True)
            if (free := free_bytes(self.folder)) < need:
                return f"{where}, {self.folder} has {format_bytes(free)}; {mend}"
            with atomic_folder(self.folder / str(number)) as aside:
                _write_tensors(tensors, aside / TENSORS)
                content = {"made_of": self.made_of, "state": state, "tensors": sha256(aside / TENSORS)}
                write_text(sealed(content), aside / STATE)
                for name in (FOLD_JSON, WEIGHTS) if state["keeper"]["score"] else ():
                    link_or_copy(self.home / name, aside / name)
        except (OSError, SafetensorError, Fb3Error) as error:
            reason = None
            if isinstance(error, OSError):
                reason = unreadable_source(self.folder / str(number), error) or error.strerror
            return f"{where} and could not be written ({reason or error}); {mend}"
        seconds = round(time.monotonic() - started, 2)
        self.session.log.event("save", fold=self.fold, step=number, bytes=need - _SPARE, seconds=seconds)
        return None

    def restore(self, loop: Loop) -> int:
        """Brings a fold back to its last whole save.

        Returns:
            Optimizer steps done; 0 where nothing is saved.

        Raises:
            Fb3Error: the save is of another recipe, other data, another number of processes.
        """
        if self.session.digests is None:
            return 0
        accelerator, broken = self.session.accelerator, []
        for path in found(self.folder):
            try:
                content = read_save(path)
            except Fb3Error as error:
                self._say(f"{error}; this save is not used")
                broken.append(path)
                continue
            try:
                self._check(content["made_of"], path)
                self._restore(loop, content["state"], path)
            except (Fb3Error, OSError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # whole by its hash, and yet not what a save holds
                raise Fb3Error(f"{path}: not a save ({error!r}); delete {self.folder} to start the fold over") from None
            break
        accelerator.wait_for_everyone()  # all have read
        if accelerator.is_main_process:
            for path in broken:  # or the next save would take it for a whole one
                shutil.rmtree(path)
        return loop.step.number

    def _restore(self, loop: Loop, state: Tree, path: Path) -> None:
        accelerator = self.session.accelerator
        try:
            load_shared(loop, state["shared"])
        except Fb3Error as error:
            raise Fb3Error(f"{path}: {error}; delete {self.folder} to start the fold over") from None
        self.keeper.load(state["keeper"])
        load_own(loop, state["own"][accelerator.process_index])
        if accelerator.is_main_process:
            for name in (WEIGHTS, FOLD_JSON):  # a later evaluation's are not those that the state knows
                if (path / name).is_file():
                    with atomic_file(self.home / name) as aside:
                        link_or_copy(path / name, aside)
                else:
                    (self.home / name).unlink(missing_ok=True)
            self.session.log.cut(self.fold, state["log"])

    def _check(self, then: Tree, path: Path) -> None:
        """Refuses the save of something else; says what will differ."""
        now, over = self.made_of, f"delete {self.folder} to start the fold over"
        if lines := differences(self.session.recipe, Recipe.from_mapping(then["recipe"], str(path))):
            raise Fb3Error(f"{path}: saved with another recipe ({'; '.join(lines)}); {over}")
        if then["files"] != now["files"] or then["fold"] != now["fold"]:
            what = "train.csv or task.uda.file" if then["files"] != now["files"] else "split into folds"
            raise Fb3Error(f"{path}: saved with another {what}; give the same, or {over}")
        if then["processes"] != now["processes"]:
            raise Fb3Error(
                f"{path}: saved by {then['processes']} processes, here are {now['processes']}; launch as many, or "
                f"{over}"
            )
        differ = [
            f"{name} {then[name]}, now {now[name]}" for name in ("precision", "device") if then[name] != now[name]
        ]
        differ += [
            f"{name} {then['versions'].get(name)}, now {version}"
            for name, version in now["versions"].items()
            if then["versions"].get(name) != version
        ]
        if differ:
            self._say(f"fold {self.fold} was saved with {'; '.join(differ)}: it will not end bit for bit the same")

    def _say(self, line: str) -> None:
        if self.session.accelerator.is_main_process:
            say(line)


def asked_to_stop(session: Session) -> str:
    """Why any process of the run is to stop; empty where none is."""
    reasons = [session.stop.reason]
    if session.accelerator.num_processes > 1:
        reasons = gather_object(reasons)
    return next(filter(None, reasons), "")


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file; tensors of one memory, which it refuses, as copies."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    save_file(apart, path)
