import json
import re
import shlex
from difflib import SequenceMatcher
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fb3.errors import Fb3Error, RuleError
from fb3.recipe import Recipe, builtin_names, builtin_text, json_schema, load_recipe
from fb3.recipe.keys import dotted_keys
from fb3.recipe.load import differences, overridden
from fb3.recipe.model import PoolingSettings
from fb3.recipe.safe_yaml import parse
from fb3.recipe.settings import Settings, kinds
from fb3.recipe.task import LossKind, TaskSettings
from fb3.recipe.training import FORMER_DEFAULTS, OptimizerSettings, ScheduleSettings
from fb3.recipe.tricks import TrickSettings
from tests.builtin import WITH_FRAMES

EXPECTED = {
    "deberta-v3-base",
    "deberta-v3-base-fgm",
    "deberta-v3-large",
    "deberta-v3-large-fgm",
    "deberta-v3-large-unscale",
    "deberta-v2-xlarge",
    "deberta-v2-xlarge-mnli",
    "minilm-l6",
    "minilm-l6-best",
    "tiny",
}


def test_the_built_in_recipes_are_there_and_valid():
    assert set(builtin_names()) == {*EXPECTED, *WITH_FRAMES}
    for name in EXPECTED:
        load_recipe(name)
    for name in WITH_FRAMES:
        for competition in ("wechat-2022", "emoji"):
            recipe = load_recipe(name, competition=competition)
            assert recipe.data.frames
            assert f"{recipe.model.frames.kind}" == name.replace("-", "_")
        with pytest.raises(Fb3Error, match=r"data\.frames"):
            load_recipe(name)


def test_defaults_are_the_published_ones():
    r = Recipe()
    assert (r.model.dropout, r.model.attention_dropout, r.data.max_length) == (0, 0, 512)
    assert (r.train.batch_size, r.train.epochs, r.folds.count, r.train.seed) == (8, 5, 4, 42)
    assert (r.task.loss, r.model.pooling.kind, r.optimizer.kind) == ("smooth_l1", "attention", "adamw")
    assert (r.optimizer.layer_decay, r.optimizer.encoder_rate, r.optimizer.weight_decay) == (0.9, 5e-5, 0.01)
    assert (r.optimizer.clip, r.optimizer.unscale, r.optimizer.eps) == (1000, True, 1e-6)
    assert (r.optimizer.betas, r.schedule.kind, r.schedule.cycles) == ((0.9, 0.999), "cosine", 0.5)


@pytest.mark.parametrize("name", sorted([*EXPECTED, *WITH_FRAMES]))
def test_a_built_in_recipe_says_only_what_differs_from_the_defaults(name):
    def leaves(node, path=()):
        if isinstance(node, dict):
            for key, value in node.items():
                yield from leaves(value, (*path, key))
        else:
            yield path, node

    defaults = dict(leaves(Recipe().model_dump(mode="json")))
    for path, value in leaves(yaml.safe_load(builtin_text(name))):
        assert path == ("model", "backbone") or defaults.get(path) != value, path


def test_a_recipe_survives_yaml(tmp_path):
    recipe = load_recipe(
        "tiny", ["tricks=[{kind: fgm, epsilon: 0.5}, {kind: ema}]", "model.pooling.kind=concat_layers"]
    )
    path = tmp_path / "r.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe


LABELS = ["task={kind: classification, classes: [a, b]}", "data.target_columns=[x]", "metric=macro_f1"]


def test_sampling_by_counts_survives_yaml_and_its_faults_are_told_in_one_sentence(tmp_path):
    recipe, path = load_recipe("tiny", [*LABELS, "train.sampling={100: 5, 500: 2.5}"]), tmp_path / "r.yaml"
    assert recipe.train.sampling == {100: 5.0, 500: 2.5}
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe
    for wrong in ("{0: 5}", "{}", "{a: 3}", "{10: -1}", "{10: x}", "often", "[1]"):
        with pytest.raises(Fb3Error, match=r"train\.sampling: want balanced, sqrt, or counts with factors"):
            load_recipe("tiny", [*LABELS, f"train.sampling={wrong}"])


def test_a_recipe_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().train.epochs = 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", "unknown key train.epoch; did you mean 'train.epochs'"),
        ("trian.epochs=3", "did you mean 'train.epochs'"),
        ("train.epochs=x", "train.epochs"),
        ("train.epochs=0", "greater than or equal to 1, got 0"),
        ("train.epochs", "key.sub=value"),
        ("train.epochs=[", "not YAML"),
        ("tricks=[{kind: fgn}]", "'fgm', 'pgd'"),
        ("tricks=[{kind: fgm, eps: 1}]", "did you mean 'epsilon'"),
        ("tricks=[{kind: fgm}, {kind: fgm}]", "stands 2 times"),
        ("model.pooling={kind: mean, layers: 3}", "model.pooling.layers: belongs to kinds weighted_layer, "),
        ("optimizer.encoder_rate=.nan", "finite"),
        ("optimizer.encoder_rate=-1", "greater than 0"),
        ("schedule={warmup_steps: 3, warmup_share: 0.1}", "not both"),
        (
            "schedule={kind: linear, cycles: 1.5}",
            "schedule.cycles: belongs to kinds cosine, cosine_restarts; leave it out",
        ),
        ("task={minimum: 5, maximum: 1}", "below"),
        ("data.target_columns=[a, a]", "must differ"),
        ("data.target_columns=[]", "at least 1"),
        ("data.target_columns=[a, true_a]", "true_a"),
        ("train.seed=-1", "greater than or equal to 0"),
        ("optimizer=adamw", "optimizer: holds keys of its own (kind, encoder_rate, "),
        ("model.pooling=mean", "model.pooling: holds keys of its own (kind), such as {kind: …}, got 'mean'"),
        (
            "folds=5",
            "folds: holds keys of its own (count, seed, holdout, group_column, stratify, stratify_columns), such",
        ),
        ("folds.group_column=text_id", "folds.group_column=text_id: holds each id once; name a column of groups"),
        ("folds.group_column=syntax", "folds.group_column=syntax: holds a target, which the folds should share; name"),
        ("folds.group_column=fold", "folds: the column 'fold' holds a split of its own; name another one"),
        ("folds.stratify=label", "folds.stratify: Input should be 'labels', 'label_sets' or 'none', got 'label'"),
        ("folds.stratify_columns=text_id", "folds.stratify_columns: 'text_id' holds each id once; leave it out"),
        ("folds.stratify_columns=[a, a]", "folds: stratify_columns must differ, got ['a', 'a']"),
        ("folds.stratify_columns=[]", "at least 1"),
        ("folds={stratify: none, stratify_columns: a}", "stratify_columns does nothing with stratify=none; drop one"),
        ("folds={group_column: a, stratify_columns: a}", "a group is in one fold only, so 'a' cannot be balanced"),
        (
            "folds={stratify: label_sets, stratify_columns: a}",
            "folds.stratify=label_sets combines columns, and there is one; take labels",
        ),
        ("tricks=[fgm]", "tricks.0: holds keys of its own (kind)"),
        ("tricks=fgm", "tricks: want a list in brackets, got 'fgm'"),
        ("task.loss=rmse", None),
    ],
)
def test_a_wrong_override_is_refused_by_name(override, words):
    more = [] if words else ["train.accumulation=2"]
    with pytest.raises(Fb3Error) as error:
        load_recipe("tiny", [override, *more])
    assert (words or "does not add up over parts of a batch") in str(error.value)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("loss=mse", "did you mean 'task.loss'"),
        ("quality=3", "known: model, data, folds, train, optimizer, schedule, task, metric, decision, predict, tricks"),
        ("data.template={x}", "did you mean 'data.text.template'?"),
        ("epochs=3", "did you mean 'train.epochs' or 'pseudo.epochs'?"),
        ("epoch=3", "did you mean 'train.epochs' or 'pseudo.epochs'?"),
        ("encoder_rate=1e-4", "did you mean 'optimizer.encoder_rate'?"),
        ("train.dropout=0.1", "did you mean 'model.dropout' or"),
        ("model.pooling.kindd=mean", "did you mean 'model.pooling.kind'?"),
        ("model.pooling.lauers=3", "did you mean 'model.pooling.layers'?"),
        ("seed=3", "did you mean 'folds.seed' or 'train.seed'?"),
        ("model.qqq=1", "known: backbone, scratch, "),
        ("folds.n=5", "known: count, seed, holdout"),
        ("optimizer.lr=1", "known: kind, encoder_rate, "),
        ("task.low=-4", "known: kind, weighting, r_drop, uda, minimum, maximum, "),
        ("task.min=-4", "did you mean 'task.minimum'?"),
        ("task.max=4", "did you mean 'task.maximum'?"),
        ("model.pool=mean", "did you mean 'model.pooling'?"),
        ("schedule.type=linear", "known: kind, warmup_steps, "),
        ("warmup=0.1", "did you mean 'schedule.warmup_steps' or 'schedule.warmup_share'?"),
        ("train.log=5", "did you mean 'train.log_every_steps'?"),
    ],
)
def test_a_hint_is_searched_at_all_levels(override, hint):
    with pytest.raises(Fb3Error, match=f"unknown key {override.partition('=')[0]}; {re.escape(hint)}"):
        load_recipe("tiny", [override])


def test_a_key_of_another_kind_is_told_with_that_kind(tmp_path):
    with pytest.raises(Fb3Error, match=r"model\.pooling\.power: belongs to kind gem; leave it out or take kind: gem$"):
        load_recipe("tiny", ["model.pooling={kind: mean, power: 3}"])
    (tmp_path / "r.yaml").write_text("train: {epoch: 3}\nqwk: 1\n")
    with pytest.raises(
        Fb3Error, match=r"train\.epoch; did you mean 'train\.epochs'\?; unknown key qwk; known: model, "
    ):
        load_recipe(tmp_path / "r.yaml")


KEYS = dotted_keys(Recipe)


def test_the_known_keys_are_those_that_overrides_name():
    assert {"train", "train.epochs", "data.text.template", "model.pooling.layers", "task.uda.augment.mask"} <= {*KEYS}
    assert not {key for key in KEYS if key.startswith("tricks.")}


def hints_of(key):
    try:
        load_recipe("tiny", [f"{key}=1"])
    except Fb3Error as error:
        return re.findall(r"'([\w.]+)'", str(error).partition("did you mean ")[2].partition("?")[0])
    return [key]


@pytest.mark.parametrize("key", [key for key in KEYS if "." in key])
def test_the_last_part_of_a_key_leads_to_it(key):
    last = key.rpartition(".")[2]
    others = {other.rpartition(".")[2] for other in KEYS if not other.startswith("pretrain.")}
    if key.startswith("pretrain.") and last in others:  # the last part leads to the other group's key
        assert key not in hints_of(last)
    elif last not in Recipe.model_fields:  # text, of data.text, is none either
        assert key in hints_of(last)


@given(st.sampled_from(KEYS), st.data())
def test_a_mistyped_letter_leads_to_the_key_or_to_none_that_is_far_off(key, data):
    place = data.draw(st.sampled_from([n for n, sign in enumerate(key) if sign != "."]))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz_"))
    mistyped = key[:place] + letter + key[place + 1 :]
    hints, likeness = hints_of(mistyped), {k: SequenceMatcher(None, mistyped, k).ratio() for k in KEYS}
    far = [hint for hint in hints if likeness[hint] < 0.75 and not hint.endswith(f".{mistyped}")]
    assert key in hints or mistyped in KEYS or not far
    if len(key) >= 8 and mistyped not in KEYS:
        assert any(likeness[hint] >= likeness[key] for hint in hints)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [("data", "target_columns", "score"), ("train", "trackers", "wandb"), ("folds", "stratify_columns", "prompt")],
)
def test_one_text_is_a_list_of_one(tmp_path, group, key, value):
    assert getattr(getattr(load_recipe("tiny", [f"{group}.{key}={value}"]), group), key) == (value,)
    (tmp_path / "r.yaml").write_text(f"{group}: {{{key}: {value}}}")
    assert getattr(getattr(load_recipe(tmp_path / "r.yaml"), group), key) == (value,)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["tricks=[{kind:", "fgm}]"], "'tricks=[{kind: fgm}]'"),
        (["tricks=[{kind:", "fgm,", "epsilon:", "0.5}]", "train.epochs=3"], "'tricks=[{kind: fgm, epsilon: 0.5}]'"),
        (["tricks=[{kind: fgm}"], "'tricks=[{kind: fgm}]'"),
        (["tricks=[{kind:fgm}]"], "'tricks=[{kind: fgm}]'"),
        (["data.text.template={title} {full_text}"], """'data.text.template="{title} {full_text}"'"""),
        (["data.text.template={full_text}", "{title}"], """'data.text.template="{full_text} {title}"'"""),
        (["train.epochs", "=", "3"], "train.epochs=3"),
        (["train.epochs = 3"], "train.epochs=3"),
        (["train.epochs=", "3"], "train.epochs=3"),
        (["train.epochs:", "3", "train.seed=4"], "train.epochs=3"),
        (["train.epochs: 3"], "train.epochs=3"),
        (["data.id_column=5"], """'data.id_column="5"'"""),
        (["data.target_columns=[a,", "b]"], "'data.target_columns=[a, b]'"),
    ],
)
def test_a_mistake_in_quoting_is_answered_with_the_right_quotes(words, meant):
    with pytest.raises(Fb3Error) as error:
        load_recipe("tiny", words)
    assert str(error.value).endswith(f"; quote it: {meant}")
    repaired = [word for word in words if word in ("train.epochs=3", "train.seed=4")]
    load_recipe("tiny", [*repaired, *shlex.split(meant)])  # a shell hands over what is right


@pytest.mark.parametrize(
    "words",
    [
        ["train.epochs=x"],
        ["train.epochs=["],
        ["train.epoch=3"],
        ["model.backbone=x", "train.epoch=3"],
        ["tricks=[{kind: fgn}]"],
        ["task.loss=rmse", "train.accumulation=2"],
        ["model.backbone="],
        ["stray"],
        ["data.target_columns=[1, 2]"],
    ],
)
def test_another_mistake_is_not_taken_for_one_of_quoting(words):
    with pytest.raises(Fb3Error) as error:
        load_recipe("tiny", words)
    assert "quote" not in str(error.value)


@pytest.mark.parametrize("clash", ["train.accumulation=2", "model.freeze_embeddings=true"])
def test_fgm_is_refused_where_it_would_do_harm_or_nothing(clash):
    with pytest.raises(Fb3Error, match="fgm"):
        load_recipe("deberta-v3-base-fgm", [clash])


def test_overrides_are_checked_together():
    assert load_recipe("tiny", ["task.minimum=6", "task.maximum=10"]).task.minimum == 6
    assert load_recipe("deberta-v3-base-fgm", ["train.accumulation=2", "tricks=[]"]).tricks == ()


def test_overrides_merge_groups_and_replace_other_kinds():
    assert load_recipe("tiny", ["model.scratch.config.hidden_size=32"]).model.scratch.config["intermediate_size"] == 128
    recipe = load_recipe("tiny", ["model.pooling={kind: concat_layers, layers: 2}", "model.pooling.kind=mean"])
    assert recipe.model.pooling.model_dump() == {"kind": "mean"}
    assert load_recipe("tiny", ["task.loss=mse", "task.kind=regression"]).task.loss == "mse"
    assert load_recipe("tiny", ["optimizer.kind=radam"]).optimizer.encoder_rate == 2e-3, "the kinds share their rates"
    assert (
        load_recipe("minilm-l6").optimizer.encoder_rate
        == load_recipe("tiny", ["optimizer.encoder_rate=1e-4"]).optimizer.encoder_rate
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- 1", "mapping of groups"),
        ("a: [", "not YAML"),
        ("data: {files: {joins: [{file: p_{split}.csv, on: x}]}}", 'a name with braces wants quotes: "p_{split}.csv"'),
        ("modl: {}", "did you mean 'model'"),
        ("", None),
        ("a: {b: 1}\na: {c: 2}", "twice"),
    ],
)
def test_a_recipe_file_is_checked(tmp_path, content, words):
    path = tmp_path / "r.yaml"
    path.write_text(content)
    if words is None:
        assert load_recipe(path) == Recipe()
    else:
        with pytest.raises(Fb3Error, match="r.yaml.*" + words):
            load_recipe(path)


def test_unknown_names_and_files(tmp_path):
    with pytest.raises(Fb3Error, match="did you mean 'minilm-l6'"):
        load_recipe("minilm")
    with pytest.raises(Fb3Error, match="no such recipe file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"# \xe9\n")
    with pytest.raises(Fb3Error, match="not UTF-8 at byte 2"):
        load_recipe(tmp_path / "latin.yaml")


def test_every_field_has_a_docstring_and_stands_in_the_schema():
    def check(model):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"

        for kind in model.__subclasses__():
            check(kind)

    check(Settings)
    groups = json.loads(json_schema())["$defs"]
    for union in (OptimizerSettings, ScheduleSettings, TaskSettings, PoolingSettings, TrickSettings):
        for member in kinds(union).values():
            assert set(groups[member.__name__]["properties"]) == set(member.model_fields)


@given(st.integers(1, 10**6), st.floats(1e-9, 1.0))
def test_overrides_of_any_value_come_out_as_given(epochs, rate):
    recipe = load_recipe("tiny", [f"train.epochs={epochs}", f"optimizer.head_rate={rate!r}"])
    assert recipe.train.epochs == epochs
    assert recipe.optimizer.head_rate == rate


# A recipe.yaml from the time when one class held all optimizers and one all schedules.
FORMER = """
optimizer:
  kind: {optimizer}
  encoder_rate: 0.0001
  embeddings_rate: null
  head_rate: 0.001
  layer_decay: 0.9
  decay_by: layer
  weight_decay: 0.01
  eps: 1.0e-06
  betas:
  - 0.9
  - 0.999
  bias_correction: true
  clip: 1000.0
  unscale: true
schedule:
  kind: {schedule}
  warmup_steps: 0
  warmup_share: 0.1
  cycles: {cycles}
  power: 2.0
  floor: 0.0
task:
  kind: regression
  minimum: 1.0
  maximum: 5.0
  weighting: fixed
  r_drop: null
  uda: null
  loss: {loss}
  delta: 0.5
  quantile: 0.5
  terms: []
"""


@pytest.mark.parametrize("optimizer", kinds(OptimizerSettings))
@pytest.mark.parametrize("schedule", kinds(ScheduleSettings))
@given(st.sampled_from(get_args(LossKind)))
def test_recipes_saved_with_the_settings_of_all_kinds_are_those_of_today(optimizer, schedule, loss):
    cycles = 3.0 if schedule == "cosine_restarts" else 0.5
    text = FORMER.format(optimizer=optimizer, schedule=schedule, cycles=cycles, loss=loss)
    former = Recipe.from_mapping(parse(text, "former"), "former")
    lines = [f"optimizer.kind={optimizer}", "optimizer.encoder_rate=1.0e-4", "optimizer.head_rate=1.0e-3"]
    lines += [f"schedule.kind={schedule}", "schedule.warmup_share=0.1", f"task.loss={loss}"]
    lines += ["schedule.cycles=3"] if cycles == 3 else []
    today = overridden(Recipe(), lines)
    assert former == today
    assert not differences(former, today)
    assert load_again(former) == former
    left = former.optimizer.model_dump() | former.schedule.model_dump()
    assert ("betas" in left, "power" in left) == (optimizer not in {"adafactor", "madgrad"}, schedule == "polynomial")


def load_again(recipe):
    return Recipe.from_mapping(parse(recipe.to_yaml(), "again"), "again")


OTHER = {"eps": 1e-8, "betas": [0.9, 0.99], "bias_correction": False, "cycles": 2, "power": 3.0, "floor": 0.5}


@pytest.mark.parametrize(
    ("group", "kind", "key"),
    [
        (group, kind, key)
        for group, union in (("optimizer", OptimizerSettings), ("schedule", ScheduleSettings))
        for kind, member in kinds(union).items()
        for key in FORMER_DEFAULTS[group]
        if key not in member.model_fields
    ],
)
def test_a_setting_of_another_kind_is_refused_unless_it_is_the_former_default(group, kind, key):
    more = {"cycles": 2} if kind == "cosine_restarts" else {}
    plain = Recipe.from_mapping({group: {"kind": kind, **more}}, "r")
    former = {key: FORMER_DEFAULTS[group][key]}
    assert Recipe.from_mapping({group: {"kind": kind, **more, **former}}, "r") == plain
    with pytest.raises(RuleError, match=rf"{group}\.{key}: belongs to kinds? .*; leave it out or take "):
        Recipe.from_mapping({group: {"kind": kind, **more, key: OTHER[key]}}, "r")


def test_another_kind_keeps_the_settings_that_both_have():
    recipe = load_recipe("tiny", ["optimizer.clip=1", "optimizer.kind=adafactor", "schedule.floor=0.1"])
    assert (recipe.optimizer.clip, recipe.optimizer.head_rate) == (1, 5e-3)
    assert load_recipe("tiny", ["schedule={kind: linear}", "schedule.floor=0.1"]).schedule.floor == 0.1
    # 0.5 was the cosine's default, and dropped with it.
    with pytest.raises(RuleError, match=r"schedule\.cycles: missing, and it has no default"):
        load_recipe("tiny", ["schedule.kind=cosine_restarts"])
    with pytest.raises(RuleError, match=r"optimizer\.betas: belongs to kinds adamw, "):
        load_recipe("tiny", ["optimizer.betas=[0.8, 0.9]", "optimizer.kind=adafactor"])


def test_a_former_default_is_dropped_in_each_way_that_it_is_written():
    settings = "optimizer={kind: adafactor, eps: 1e-6, betas: [0.9, 0.999], bias_correction: true}"
    assert load_recipe("tiny", [settings]) == load_recipe("tiny", ["optimizer={kind: adafactor}"])
    with pytest.raises(RuleError, match=r"optimizer\.eps: belongs to kinds"):
        load_recipe("tiny", ["optimizer={kind: adafactor, eps: 1e-7}"])


def test_another_kind_is_one_difference_without_the_settings_that_it_lacks():
    there = load_recipe("tiny", ["schedule={kind: constant}", "optimizer.kind=radam", "train.epochs=7"])
    told = differences(load_recipe("tiny"), there)
    keys = {each.partition(":")[0] for each in told}
    assert {"optimizer.kind", "schedule.kind", "train.epochs"} <= keys
    assert not {"schedule.cycles", "schedule.floor", "optimizer.bias_correction"} & keys
