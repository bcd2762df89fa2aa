"""Runs of pieces of the recipe on tiny encoders, for test_book.py; each combination is trained once."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import normalizers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from fb3.errors import Fb3Error
from fb3.models.from_scratch import SPECIAL, train_tokenizer
from fb3.prediction.fold_prediction import predict_fold
from fb3.prediction.member_inputs import encode
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.settings import Settings, kinds
from fb3.recipe.task import BaseTaskSettings
from fb3.runs.checkpoint import read_weights
from fb3.runs.run_folder import Member, Run
from fb3.system.files import read_json
from fb3.targets.build import target_of
from fb3.training.run import train
from tests.conftest import TINY

SMALL_RUN = [
    *TINY,
    "model.backbone=FIRST",
    "data.sample=24",
    "data.max_length=64",
    "train.epochs=2",
    "train.batch_size=4",
    "train.keep=all",
    "optimizer.head_rate=1.0e-2",
    "optimizer.weight_decay=0",
]
# Random weights ten times as wide as usual: else all essays look nearly the same, and a replay of others would pass.
SIZE = {"num_attention_heads": 2, "initializer_range": 0.2, "max_position_embeddings": 64}
FIRST = {
    **SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
SECOND = {**SIZE, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}


@dataclass
class Trained:
    """A run: its folder, the score of each evaluation, and what the last one gave: its losses, and columns' scores."""

    path: Path
    scores: list[float]
    last: np.ndarray

    def differs(self, other: "Trained") -> bool:
        """More than by rounding."""
        return len(self.last) != len(other.last) or bool(np.abs(self.last - other.last).max() > 1e-5)

    def way(self, start: Path, encoder: str, part: str = "") -> float:
        """How far a part of an encoder lies from its start at the end of the run, as a share of the start's norm."""
        last = max(self.path.glob("fold0/step*"), key=lambda folder: int(folder.name.removeprefix("step")))
        now, was = (read_weights(folder / "model.safetensors") for folder in (last, start))
        names = [name for name in was if name.startswith(part) and f"{encoder}.{name}" in now]
        moved = sum((now[f"{encoder}.{name}"] - was[name]).square().sum().item() for name in names)
        return (moved / sum(was[name].square().sum().item() for name in names)) ** 0.5

    def check(self, data: Path) -> None:
        """Scores are plausible, the best is kept, and the kept weights give the kept predictions."""
        assert all(0.3 < score < 1.2 for score in self.scores)
        assert read_json(self.path / "fold0" / "fold.json")["score"] == pytest.approx(min(self.scores), abs=1e-9)
        recipe = load_recipe(self.path / "recipe.yaml")
        member = Member("run", self.path, recipe, [self.path / "fold0"])
        kept, essays = (pd.read_csv(file, dtype={"text_id": str}) for file in (self.path / "oof.csv", data))
        encoded = encode(member, essays.set_index("text_id").loc[kept["text_id"]])
        again = predict_fold(member, 0, encoded, kept["text_id"].to_numpy(), "cpu", precision="fp32", shown=False)
        off = 0.05 if recipe.train.precision == "bf16" else 2e-5
        target = target_of(recipe)
        np.testing.assert_allclose(target.clip(again.values), kept[list(target.columns)], atol=off)


class Book:
    """Trains pieces together.

    Args:
        folder: for data, encoders and runs.
        pieces: overrides by name; "a/b" is b on top of a.
    """

    def __init__(self, folder: Path, pieces: Mapping[str, Sequence[str]]) -> None:
        self.folder, self.pieces = folder, pieces
        self.done: dict[tuple[str, ...], Trained] = {}

    def recipe(self, *names: str) -> Recipe:
        """The small run with these pieces, or lines, on top of each other, and their tricks side by side."""
        lines = list(SMALL_RUN)
        for name in names:
            parts = name.split("/")
            below = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
            lines += [name] if "=" in name else [line for each in below for line in self.pieces[each]]
        tricks = [line.removeprefix("tricks=[").removesuffix("]") for line in lines if line.startswith("tricks=")]
        lines = [*(line for line in lines if not line.startswith("tricks=")), f"tricks=[{', '.join(tricks)}]"]
        for place in ("FIRST", "SECOND", "SYNONYMS"):
            lines = [line.replace(place, str(self.folder / place)) for line in lines]
        return load_recipe("tiny", lines)

    def __call__(self, *names: str) -> Trained:
        """The run of these pieces."""
        if names not in self.done:
            run = self.train(self.recipe(*names), self.folder / f"run{len(self.done)}")
            log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
            found = [event for event in log if event["event"] == "evaluation"]
            last = np.array([*found[-1]["columns"].values(), found[-1]["score"]])
            self.done[names] = Trained(run.path, [event["score"] for event in found], last)
        return self.done[names]

    def train(self, recipe: Recipe, out: Path) -> Run:
        """Trains one fold; skips the test where a library of the recipe's is not installed."""
        try:
            return train(recipe, self.folder / "data", out, folds=[0])
        except Fb3Error as error:
            if "pip install" in str(error):
                pytest.skip(str(error))
            raise


def prepare(folder: Path, competition: Path) -> None:
    """Data that hold what text pieces look for, synonyms, and two encoders with tokenizers: cased and uncased."""
    table = pd.read_csv(competition / "train.csv", dtype={"text_id": str})
    changes = (("\n\n", " "), (". ", ".\n\n"), (" to ", " toâ€™ "))
    for old, new in changes:
        table["full_text"] = table["full_text"].str.replace(old, new, regex=False)
    mean = table[list(load_recipe("tiny").data.target_columns)].mean(axis=1)
    table["level"] = np.select([mean < mean.quantile(0.2), mean < mean.quantile(0.5)], ["low", "middle"], "high")
    for number, name in enumerate(("grammar", "syntax", "cohesion"), 1):
        table[f"good_{name}"] = (table[name] > table[name].quantile(0.2 * number)).astype(int)
    table["importance"] = np.arange(len(table)) % 4
    table["topic"] = np.where(np.arange(len(table)) % 2, "school", "family")
    (folder / "data").mkdir()
    (folder / "SYNONYMS").write_text("good, fine\nbig, large\nfriend, teacher, brother\nthe, that\n")
    texts = [*table["full_text"], *[" ".join(table.columns)] * 9]  # the prompt's names shall be words
    table.loc[table.index % 3 == 0, "full_text"] = "语法 好 " + table["full_text"]  # characters that no tokenizer has
    table.to_csv(folder / "data" / "train.csv", index=False)
    _save_encoder(folder / "FIRST", "deberta-v2", FIRST, texts)
    _save_encoder(folder / "SECOND", "bert", SECOND, [text.lower() for text in texts])


def _save_encoder(folder: Path, model_type: str, config: dict[str, Any], texts: list[str]) -> None:
    tokenizer = train_tokenizer(texts, 600)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=model_type == "bert")
    torch.manual_seed(0)
    size = {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": 0, "architectures": []}
    AutoModel.from_config(AutoConfig.for_model(model_type, **config, **size)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)


def rows(unions: Mapping[str, Any], small: Mapping[str, Any], shown: Collection[str]) -> dict[str, list[str]]:
    """A row for each kind of the unions that is not in `shown`, with its defaults.

    Args:
        unions: by their key in a recipe.
        small: settings in the place of defaults, for the kinds that have them.
        shown: kinds, or Class.field=kind.
    """
    out = {}
    for key, union in unions.items():
        for kind, group in kinds(union).items():
            if not {kind, f"{declared_in(group, 'kind').__name__}.kind={kind}"} & {*shown}:
                own = ", ".join(f"{k}: {v}" for k, v in {"kind": kind, **small}.items() if k in group.model_fields)
                out[kind] = [f"{key}=[{{{own}}}]" if key == "tricks" else f"{key}={{{own}}}"]
    return out


def inside(annotation: Any) -> Iterator[Any]:
    """The classes and literals in an annotation."""
    if get_origin(annotation) is Literal or not get_args(annotation):
        yield annotation
    for inner in get_args(annotation) if get_origin(annotation) is not Literal else ():
        yield from inside(inner)


def declared_in(group: type[Settings], name: str) -> type[Settings]:
    """The class that declares a field: where kinds inherit it, one row serves them all.

    A task counts as declaring all its fields, because each task treats inherited fields in its own way.
    """
    if issubclass(group, BaseTaskSettings):
        return group
    return next(base for base in group.__mro__ if name in base.__annotations__)


def offered(group: type[Settings], switched: set[type[Settings]]) -> Iterator[str]:
    """Each kind in a group and below it, as Class.field=kind, and what `switched` classes have off, as Class.field=on.

    Optional parts of a task are left out: a row for them is welcome, not demanded.
    """
    for name, field in group.model_fields.items():
        parts, declared = list(inside(field.annotation)), declared_in(group, name)
        if issubclass(group, BaseTaskSettings) and type(None) in parts:
            continue
        for each in parts:
            if get_origin(each) is Literal:
                yield from (f"{declared.__name__}.{name}={kind}" for kind in get_args(each))
            elif isinstance(each, type) and issubclass(each, Settings):
                yield from offered(each, switched)
        if declared in switched and not field.is_required() and not field.default:
            yield f"{declared.__name__}.{name}=on"


def used(group: Settings) -> Iterator[str]:
    """The kinds that a recipe holds and the fields that are on, named as in `offered`."""
    for name in type(group).model_fields:
        value = getattr(group, name)
        declared = declared_in(type(group), name).__name__
        yield from (f"{declared}.{name}={word}" for word in (value, "on" if value else "off"))
        for each in value if isinstance(value, tuple) else [value]:
            if isinstance(each, Settings):
                yield from used(each)
