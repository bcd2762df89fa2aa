"""What the rest of a training depends on, as one tree: dicts and lists of tensors, numbers and texts."""

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
    """What is the same in all processes, between two optimizer steps."""
    step, scaler = loop.step, loop.accelerator.scaler
    return {
        "step": {
            "number": step.number,
            "epoch": step.epoch,
            "progress": step.progress,
            "score": score_state(step.score),
        },
        "weights": weights_of(loop.scorer),
        "optimizer": _optimizer_state(loop),
        "schedule": {k: v for k, v in loop.schedule.state_dict().items() if k != "lr_lambdas"},
        "scaler": scaler.state_dict() if scaler else None,
        "tricks": [trick.state_dict() for trick in loop.tricks],
        "parts": loop.parts.number,
        "recomputes": loop.parts.recomputes,
    }


def own_state(loop: "Loop") -> Tree:
    """What each process has of its own."""
    return {
        "random": random_state(loop.accelerator.device),
        "essays": loop.encoded.state_dict(),
        "task": loop.task.state(),
        "window": loop.window.state(),
    }


def load_shared(loop: "Loop", state: Tree) -> None:
    """Puts back what `shared_state` gave.

    Raises:
        Fb3Error: it is another model's.
    """
    live, saved = weights_of(loop.scorer), state["weights"]
    if {n: t.shape for n, t in live.items()} != {n: t.shape for n, t in saved.items()}:
        differ = sorted(live.keys() ^ saved.keys()) or [n for n, t in live.items() if t.shape != saved[n].shape]
        raise Fb3Error(f"not the weights of this recipe's model ({differ[:3]})")
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(saved[name])
    _load_optimizer(loop, state["optimizer"])
    schedule = loop.schedule.state_dict()
    rates = {key: schedule[key] for key in ("base_lrs", "_last_lr")}  # by groups, of which an earlier version had more
    loop.schedule.load_state_dict({**schedule, **state["schedule"], **rates})
    if loop.accelerator.scaler and state["scaler"]:
        loop.accelerator.scaler.load_state_dict(state["scaler"])
    for trick, own in zip(loop.tricks, state["tricks"], strict=True):
        trick.load_state_dict(own)
    loop.parts.number = state["parts"]
    if state.get("recomputes"):  # earlier versions did not save it
        loop.parts.recompute()
    place = state["step"]
    loop.step.number, loop.step.epoch, loop.step.progress = place["number"], place["epoch"], place["progress"]
    loop.step.score = score_of(place["score"])


def load_own(loop: "Loop", state: Tree) -> None:
    """Puts back what `own_state` gave; the generators last, so that nothing draws after them."""
    loop.task.load(state["task"])
    loop.window.load(state["window"])
    loop.encoded.load_state_dict(state["essays"])
    restore_random_state(state["random"], loop.accelerator.device)


def score_state(score: Score | None) -> Tree | None:
    """A score for the tree."""
    return None if score is None else score._asdict()


def score_of(state: Tree | None) -> Score | None:
    """The score that it was."""
    return None if state is None else Score(**state)


def _names(loop: "Loop") -> list[str]:
    """The parameters in the optimizer's order, by name."""
    names = {id(p): name for name, p in loop.scorer.named_parameters()}
    names |= {id(p): f"task.{place}" for place, p in enumerate(loop.task.parameters())}
    return [names[id(p)] for group in loop.optimizer.param_groups for p in group["params"]]


def _optimizer_state(loop: "Loop") -> Tree:
    """Any optimizer's: moments and counts by the parameter's name, settings by group."""
    names, state = _names(loop), loop.optimizer.state_dict()
    return {
        "parameters": {names[place]: own for place, own in state["state"].items() if isinstance(place, int)},
        "own": {key: value for key, value in state["state"].items() if isinstance(key, str)},  # madgrad's count
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]],
    }


def _load_optimizer(loop: "Loop", state: Tree) -> None:
    """Leaves out what an earlier version trained and this one freezes, such as DeBERTa's table with the embeddings."""
    places, saved = {name: place for place, name in enumerate(_names(loop))}, {g["name"]: g for g in state["groups"]}
    groups = []
    for now in loop.optimizer.state_dict()["param_groups"]:
        then = {key: tuple(v) if isinstance(now.get(key), tuple) else v for key, v in saved[now["name"]].items()}
        groups.append({**then, "params": now["params"]})
    parameters = {places[name]: own for name, own in state["parameters"].items() if name in places}
    loop.optimizer.load_state_dict({"state": parameters | state["own"], "param_groups": groups})
