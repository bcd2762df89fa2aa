"""Everything that the rest of a training depends on, as one tree: dicts and lists of tensors, numbers and texts.

Saves on disk hold the same keys. A key that earlier versions did not write is read with a default.
"""

from typing import TYPE_CHECKING

import torch

from fb3.errors import Fb3Error
from fb3.runs.checkpoint import weights_of
from fb3.runs.save_folder import Tree
from fb3.system.seeds import random_state, restore_random_state
from fb3.targets.metrics import Score

if TYPE_CHECKING:
    from fb3.training.loop import Loop


def shared_state(loop: "Loop") -> Tree:
    """State that is the same in all processes, between two optimizer steps."""
    step, scaler = loop.step, loop.accelerator.scaler
    return {
        "step": {
            "number": step.number,
            "epoch": step.epoch,
            "progress": step.progress,
            "score": step.score and step.score._asdict(),
        },
        "weights": weights_of(loop.scorer),
        "optimizer": _optimizer_state(loop),
        "schedule": {k: v for k, v in loop.schedule.state_dict().items() if k != "lr_lambdas"},
        "scaler": scaler.state_dict() if scaler else None,
        "tricks": [trick.state_dict() for trick in loop.tricks],
        "parts": loop.micro_batching.count,
        "recomputes": loop.micro_batching.recomputes,
    }


def process_state(loop: "Loop") -> Tree:
    """State that each process has for itself: it draws its own dropout masks and changes of essays."""
    return {
        "random": random_state(loop.accelerator.device),
        "essays": loop.data.encoded.state_dict(),
        "task": loop.task.state_dict(),
        "window": loop.window.state_dict(),
    }


def load_shared_state(loop: "Loop", state: Tree) -> None:
    """Restores what `shared_state` returned; an Fb3Error where it belongs to another model."""
    live, saved = weights_of(loop.scorer), state["weights"]
    if {n: t.shape for n, t in live.items()} != {n: t.shape for n, t in saved.items()}:
        differ = sorted(live.keys() ^ saved.keys()) or [n for n, t in live.items() if t.shape != saved[n].shape]
        raise Fb3Error(f"not the weights of this recipe's model ({differ[:3]})")
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(saved[name])
    _load_optimizer(loop, state["optimizer"])
    schedule = loop.schedule.state_dict()
    # Rates stand by parameter group, and an earlier version had more groups: this version's rates stay.
    rates = {key: schedule[key] for key in ("base_lrs", "_last_lr")}
    loop.schedule.load_state_dict({**schedule, **state["schedule"], **rates})
    if loop.accelerator.scaler and state["scaler"]:
        loop.accelerator.scaler.load_state_dict(state["scaler"])
    for trick, own in zip(loop.tricks, state["tricks"], strict=True):
        trick.load_state_dict(own)
    loop.micro_batching.count = state["parts"]
    if state.get("recomputes"):  # earlier versions did not save it
        loop.micro_batching.recompute()
    place = state["step"]
    loop.step.number, loop.step.epoch, loop.step.progress = place["number"], place["epoch"], place["progress"]
    loop.step.score = place["score"] and Score(**place["score"])


def load_process_state(loop: "Loop", state: Tree) -> None:
    """Restores what `process_state` returned; the random generators last, so that nothing draws after them."""
    loop.task.load_state_dict(state["task"])
    loop.window.load_state_dict(state["window"])
    loop.data.encoded.load_state_dict(state["essays"])
    restore_random_state(state["random"], loop.accelerator.device)


def _names(loop: "Loop") -> list[str]:
    """The parameters' names, in the optimizer's order."""
    names = {id(p): name for name, p in loop.scorer.named_parameters()}
    names |= {id(p): f"task.{place}" for place, p in enumerate(loop.task.parameters())}
    return [names[id(p)] for group in loop.optimizer.param_groups for p in group["params"]]


def _optimizer_state(loop: "Loop") -> Tree:
    """The state of any optimizer: moments and counts by the parameter's name, settings by group.

    torch numbers the parameters; names still fit when a later version orders or freezes parameters otherwise.
    """
    names, state = _names(loop), loop.optimizer.state_dict()
    return {
        "parameters": {names[place]: own for place, own in state["state"].items() if isinstance(place, int)},
        "own": {key: value for key, value in state["state"].items() if isinstance(key, str)},  # madgrad's count
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]],
    }


def _load_optimizer(loop: "Loop", state: Tree) -> None:
    """Restores what `_optimizer_state` returned.

    Parameters that an earlier version trained and this one freezes are left out, such as DeBERTa's relative positions
    where the embeddings are frozen.
    """
    places, saved = {name: place for place, name in enumerate(_names(loop))}, {g["name"]: g for g in state["groups"]}
    groups = []
    for now in loop.optimizer.state_dict()["param_groups"]:
        then = {key: tuple(v) if isinstance(now.get(key), tuple) else v for key, v in saved[now["name"]].items()}
        groups.append({**then, "params": now["params"]})
    parameters = {places[name]: own for name, own in state["parameters"].items() if name in places}
    loop.optimizer.load_state_dict({"state": parameters | state["own"], "param_groups": groups})
