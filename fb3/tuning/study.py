"""A search's study on disk: optuna's storage, sampler and pruner, and a record of what its trials are made of.

Draws come from TPE (Bergstra et al. 2011), over all parameters together; a trial that lies behind the median of the
others at the same share of its training is cut off (Golovin et al. 2017).
"""

import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fb3.data.essays import training_files
from fb3.errors import Fb3Error, one_line
from fb3.recipe import Recipe
from fb3.runs.identity import Identity, named_files
from fb3.system.disk_space import is_disk_full
from fb3.system.file_names import PREPARE
from fb3.system.files import sha256
from fb3.tuning.space import Choice, Entry, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial

DATABASE = "study.db"  # SQLite: unlike a journal it stays whole when the process is killed in the middle of a line
SHARES = 1000  # optuna counts steps in whole numbers: a step is a thousandth of the training
_STARTUP = 5  # complete trials to compare with before one is cut off
_MADE_OF = "made of"


def load_optuna() -> ModuleType:
    """optuna, quiet; an Fb3Error where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise Fb3Error(f"{error}; pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(out: Path, space: Space, seed: int, lower_is_better: bool = True) -> "Study":
    """Opens the study in a folder, or makes one.

    Args:
        out: its folder.
        space: the sampler draws from it.
        seed: seed of the draws; a later start draws other values than an earlier one.
        lower_is_better: the metric's direction.
    """
    optuna = load_optuna()
    distributions = {name: _distribution(optuna, entry) for name, entry in space.entries.items()}

    class Sampler(optuna.samplers.TPESampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> "dict[str, BaseDistribution]":
            return distributions  # the whole space: optuna infers none once a trial had no parameters

    class Pruner(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            others = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            scores = [other.intermediate_values for other in others]
            return lies_behind(trial.intermediate_values, scores, lower_is_better)

    storage = f"sqlite:///{(out / DATABASE).resolve()}"
    try:
        direction = "minimize" if lower_is_better else "maximize"
        study = optuna.create_study(
            storage=storage, study_name="fb3", load_if_exists=True, pruner=Pruner(), direction=direction
        )
        len(study.trials), study.user_attrs
    except Exception as error:  # the database's drivers raise errors of many kinds
        if is_disk_full(error):
            raise
        words = one_line(error, 300)
        raise Fb3Error(f"{out / DATABASE}: no study that can be read ({words}); choose another --out") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna 4 calls multivariate an experiment
        study.sampler = Sampler(seed=seed + len(study.trials), multivariate=True, warn_independent_sampling=False)
    return study


def lies_behind(mine: Mapping[int, float], others: Sequence[Mapping[int, float]], lower_is_better: bool = True) -> bool:
    """Whether a trial's best score is worse than the median of the others' best scores at the same share of training.

    Recipes with different epochs are evaluated at different shares, so of each trial the best score up to that share
    counts. A trial that is done is never behind.

    Args:
        mine, others: scores by share of the training, in thousandths.
    """
    share = max(mine, default=SHARES)
    known = [[score for at, score in other.items() if at <= share] for other in others]
    pick = min if lower_is_better else max
    best = [pick(scores) for scores in known if scores]
    if share >= SHARES or len(best) < _STARTUP:
        return False
    own, median = pick(mine.values()), statistics.median(best)
    return own > median if lower_is_better else own < median


def suggest(trial: "Trial", name: str, entry: Entry) -> Any:
    """A parameter of a trial."""
    if isinstance(entry, Choice):
        return trial.suggest_categorical(name, list(entry.labelled))
    if entry.whole:
        return trial.suggest_int(name, entry.low, entry.high, step=entry.step or 1, log=entry.log)
    return trial.suggest_float(name, entry.low, entry.high, step=entry.step, log=entry.log)


def _distribution(optuna: ModuleType, entry: Entry) -> "BaseDistribution":
    if isinstance(entry, Choice):
        return optuna.distributions.CategoricalDistribution(list(entry.labelled))
    if entry.whole:
        return optuna.distributions.IntDistribution(entry.low, entry.high, log=entry.log, step=entry.step or 1)
    return optuna.distributions.FloatDistribution(entry.low, entry.high, log=entry.log, step=entry.step)


def check_study(study: "Study", recipe: Recipe, space: Space, data: Path, folds: list[int], out: Path) -> None:
    """Writes into a new study what its trials are made of; refuses to go on with anything else, which it names."""
    space_now = {name: entry.model_dump(mode="json", exclude={"when"}) for name, entry in space.entries.items()}
    digests = {key: sha256(file) for key, file in training_files(recipe, data).items() if key != "unlabelled_sha256"}
    here = Identity(recipe, {"space": space_now, **named_files(digests, recipe), "folds": folds})
    if _MADE_OF not in study.user_attrs:
        base = recipe.with_prepare(PREPARE).model_dump(mode="json")
        study.set_user_attr(_MADE_OF, {"recipe": base, **here.ingredients})
        return
    then = study.user_attrs[_MADE_OF]
    if not isinstance(then, dict) or not {"recipe", *here.ingredients} <= then.keys():
        raise Fb3Error(f"{out / DATABASE}: does not say what its trials were made of; choose another --out")
    base = Recipe.from_mapping(then["recipe"], f"{out}: its base recipe")
    if differ := here.differences(Identity(base, {name: then[name] for name in here.ingredients})):
        raise Fb3Error(f"{out}: its trials were made with another {differ}; choose another --out")
