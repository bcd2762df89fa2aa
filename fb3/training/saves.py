"""Saves of a fold while it trains, from which a stopped training goes on.

    fold<n>/resume/<step>/    state.json, state.safetensors, and the best checkpoint so far

A save holds everything that the rest of the training depends on (`fb3.training.state`), so that on a CPU a resumed fold
ends as the uninterrupted one, bit for bit. Only then can a test tell a complete save from one that forgot something:
a lost moment or generator moves the score by less than another seed does, and nobody would notice.

Two saves stand on disk. Each is written aside, flushed and renamed, so a killed process leaves no half-written save;
the one before is kept because a disk may still damage the last one, and hours of training must not hang on one file.

A save is made after an optimizer step and before the evaluation that may be due. An evaluation takes minutes in which
the process may be killed, and changes what a save holds (the best checkpoint, the score that tricks read): so a resumed
fold simply begins with the evaluation of the saved step.
"""

import shutil
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fb3.data.folds import FoldSplit
from fb3.errors import DiskFull, Fb3Error, Stopped
from fb3.recipe import Recipe
from fb3.runs.fold_json import ids_hash
from fb3.runs.identity import Identity, named_files
from fb3.runs.save_folder import STATE, TENSORS, Tree, extract_tensors, hashed_json, list_saves, read_save
from fb3.system.disk_space import free_bytes, unreadable_source
from fb3.system.file_names import FOLD_JSON, RESUME, WEIGHTS
from fb3.system.files import atomic_file, atomic_folder, format_bytes, link_or_copy, sha256, write_text
from fb3.system.progress import say
from fb3.training.best_checkpoint import BestCheckpoint
from fb3.training.loop import Loop
from fb3.training.processes import gathered
from fb3.training.session import Session, versions
from fb3.training.state import load_process_state, load_shared_state, process_state, shared_state

_AGREE_EVERY = 5  # steps between two agreements of several processes: each waits for the GPU
_SPARE = 2**20  # bytes for names, folders and the log


class Saves:
    """Saves one fold while it trains, stops it when asked, and restores it.

    Args:
        session: the run's; nothing is saved where it has no digests of its files, which tell whose save it is.
        split: the fold's.
        checkpoint: the fold's best evaluation.
        steps: optimizer steps in all.
    """

    def __init__(self, session: Session, split: FoldSplit, checkpoint: BestCheckpoint, steps: int) -> None:
        self.session, self.checkpoint, self.steps, self.fold = session, checkpoint, steps, split.fold
        self.folder = checkpoint.folder / RESUME
        self.last = time.monotonic()  # when it was saved
        ids = session.ids
        self.made_of = {
            "recipe": session.recipe.model_dump(mode="json"),
            "files": session.digests,
            "fold": [ids_hash(ids[split.train_rows]), ids_hash(ids[split.valid_rows])],
            "processes": session.accelerator.num_processes,
            "precision": session.precision,
            "device": session.accelerator.device.type,
            "versions": versions(),
        }

    def after_step(self, loop: Loop) -> None:
        """Saves if a save is due or the run is asked to stop.

        Raises:
            Stopped: it was asked to stop; the fold is saved.
            DiskFull: the disk has no room for the save.
        """
        if self.session.digests is None:
            return
        settings, number = self.session.recipe.train, loop.step.number
        minutes, steps = settings.save_every_minutes, settings.save_every_steps
        reason = self.session.stop.reason
        timed = minutes is not None and time.monotonic() - self.last >= 60 * minutes
        stopping, timed = self._agreed(number, bool(reason), timed)
        if stopping or timed or (steps is not None and number % steps == 0):
            self.save(loop)
        if stopping:
            saves = list_saves(self.folder)
            where = f"is saved after step {saves[0].name} of {self.steps} in {self.folder}" if saves else "has no save"
            raise Stopped(f"{reason or 'stopped'}: {loop.data.name} {where}; the same command goes on")

    def _agreed(self, number: int, stopping: bool, timed: bool) -> tuple[bool, bool]:
        """Whether any process wants to stop or to save; a save needs all of them at the same step."""
        accelerator = self.session.accelerator
        if accelerator.num_processes == 1:
            return stopping, timed
        if number % _AGREE_EVERY:
            return False, False
        wishes = accelerator.reduce(torch.tensor([stopping, timed], device=accelerator.device).float(), "sum").tolist()
        return wishes[0] > 0, wishes[1] > 0

    def save(self, loop: Loop) -> None:
        """Writes a save, on the main process.

        Raises:
            DiskFull: it cannot be written; says how much it needs. The last save is whole.
        """
        started, accelerator = time.monotonic(), self.session.accelerator
        tensors, failed = dict[str, Tensor](), None
        own = extract_tensors(process_state(loop), tensors, f"own/{accelerator.process_index}")
        every = gathered(accelerator, (own, tensors))
        if accelerator.is_main_process:
            for _, held in every:
                tensors |= held
            state = {
                "shared": extract_tensors(shared_state(loop), tensors, "shared"),
                "keeper": extract_tensors(self.checkpoint.state_dict(), tensors, "keeper"),
                "own": [each for each, _ in every],
                "log": self.session.log.lines(self.fold),
            }
            # Do not save NaN losses: closing their window raises the error that explains them.
            losses = [tensor for name, tensor in tensors.items() if name.endswith("window/losses")]
            if all(torch.isfinite(values).all() for values in losses):
                failed = self._write(loop, state, tensors, started)
        failed = next(filter(None, gathered(accelerator, failed)), None)
        if failed:
            raise DiskFull(failed)
        self.last = time.monotonic()

    def _write(self, loop: Loop, state: Tree, tensors: dict[str, Tensor], started: float) -> str | None:
        """Writes a save; returns what went wrong, in words, so that the other processes hear of it."""
        number, text = loop.step.number, hashed_json({"made_of": self.made_of, "state": state, "tensors": ""})
        need = sum(tensor.nbytes for tensor in tensors.values()) + len(text) + _SPARE
        where = f"{loop.data.name}: no save after step {number}: it needs {format_bytes(need)}"
        whole = list_saves(self.folder)
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
                write_text(hashed_json(content), aside / STATE)
                for name in (FOLD_JSON, WEIGHTS) if state["keeper"]["score"] else ():
                    link_or_copy(self.checkpoint.folder / name, aside / name)
        except (OSError, SafetensorError, Fb3Error) as error:
            reason = None
            if isinstance(error, OSError):
                reason = unreadable_source(self.folder / str(number), error) or error.strerror
            return f"{where} and could not be written ({reason or error}); {mend}"
        seconds = round(time.monotonic() - started, 2)
        self.session.log.event("save", fold=self.fold, step=number, bytes=need - _SPARE, seconds=seconds)
        return None

    def restore(self, loop: Loop) -> int:
        """Restores the fold from its last whole save.

        Returns:
            Optimizer steps done; 0 where nothing is saved.

        Raises:
            Fb3Error: the save was made with another recipe, other data, or another number of processes.
        """
        if self.session.digests is None:
            return 0
        accelerator, broken = self.session.accelerator, []
        for path in list_saves(self.folder):
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
            except Exception as error:  # the hash is right, the content is no save's
                raise Fb3Error(f"{path}: not a save ({error!r}); {self._start_over}") from None
            break
        accelerator.wait_for_everyone()  # all have read
        if accelerator.is_main_process:
            for path in broken:  # otherwise the next save would keep it as the whole one
                shutil.rmtree(path)
        return loop.step.number

    def _restore(self, loop: Loop, state: Tree, path: Path) -> None:
        accelerator = self.session.accelerator
        try:
            load_shared_state(loop, state["shared"])
        except Fb3Error as error:
            raise Fb3Error(f"{path}: {error}; {self._start_over}") from None
        self.checkpoint.load_state_dict(state["keeper"])
        load_process_state(loop, state["own"][accelerator.process_index])
        if accelerator.is_main_process:
            for name in (WEIGHTS, FOLD_JSON):  # an evaluation after the save may have replaced them
                if (path / name).is_file():
                    with atomic_file(self.checkpoint.folder / name) as aside:
                        link_or_copy(path / name, aside)
                else:
                    (self.checkpoint.folder / name).unlink(missing_ok=True)
            self.session.log.cut(self.fold, state["log"])

    def _check(self, then: Tree, path: Path) -> None:
        """Refuses a save that another training made; says which versions or devices differ."""
        now, recipe = self.made_of, Recipe.from_mapping(then["recipe"], str(path))
        here, there = (
            Identity(each, {**named_files(made["files"], each), "split into folds": made["fold"]})
            for each, made in ((self.session.recipe, now), (recipe, then))
        )
        if differ := here.differences(there):
            raise Fb3Error(f"{path}: saved with another {differ}; give the same, or {self._start_over}")
        if then["processes"] != now["processes"]:
            processes = f"saved by {then['processes']} processes, here are {now['processes']}"
            raise Fb3Error(f"{path}: {processes}; launch as many, or {self._start_over}")
        kinds = {"precision": now["precision"], "device": now["device"], **now["versions"]}
        before = {**then["versions"], "precision": then["precision"], "device": then["device"]}
        differ = [f"{name} {before.get(name)}, now {kind}" for name, kind in kinds.items() if before.get(name) != kind]
        if differ:
            self._say(f"fold {self.fold} was saved with {'; '.join(differ)}: it will not end bit for bit the same")

    @property
    def _start_over(self) -> str:
        return f"delete {self.folder} to start the fold over"

    def _say(self, line: str) -> None:
        if self.session.accelerator.is_main_process:
            say(line)


def stop_reason(session: Session) -> str:
    """The reason why any process of the run should stop; empty where none should."""
    return next(filter(None, gathered(session.accelerator, session.stop.reason)), "")


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file. The format refuses tensors that share memory, so all but the first are copied."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    save_file(apart, path)
