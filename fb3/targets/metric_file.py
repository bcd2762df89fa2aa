"""A metric of one's own, a function in a Python file, loaded when something is scored and never at inference."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fb3.errors import Fb3Error, nearest, one_line
from fb3.recipe.metric import FileMetricSettings
from fb3.system.files import read_utf8
from fb3.system.progress import say


def call_metric(settings: FileMetricSettings, truth: np.ndarray, predicted: np.ndarray) -> float:
    """The function's score of predictions against truths, (N, K) each.

    Raises:
        Fb3Error: the file or the function is missing or breaks, or the result is no finite number.
    """
    function = _load(Path(settings.file).absolute(), settings.function)
    try:
        value = function(truth, predicted)
    except Exception as error:
        raise _broken(f"metric {settings}", error) from error
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise Fb3Error(f"metric {settings}: gives {one_line(repr(value))}; let it give one finite number")
    return number


@cache
def _load(path: Path, name: str) -> Callable[[np.ndarray, np.ndarray], Any]:
    if not path.is_file():
        raise Fb3Error(
            f"metric {path}:{name}: no such file; a path begins at the working directory, give another in metric.file"
        )
    say(f"{path}: runs as code, because it holds the metric {name}")
    module: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(read_utf8(path), str(path), "exec"), module)
    except (Exception, SystemExit) as error:
        raise _broken(f"metric {path}:{name}", error) from error
    if not callable(module.get(name)):
        own = [key for key, value in module.items() if getattr(value, "__module__", "") == path.stem]
        raise Fb3Error(f"metric {path}: no function {name!r} in it; {nearest(name, own or ['none'])}")
    return module[name]


def _broken(what: str, error: BaseException) -> Fb3Error:
    return Fb3Error(f"{what}: breaks with {type(error).__name__}: {one_line(error)}; mend the file")
