"""The base of all groups of settings, unions of them by kind, and common types of values."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Settings(BaseModel):
    """Settings that belong together: unknown keys are refused, values cannot change once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


def kinds(union: Any) -> dict[str, type[Settings]]:
    """The settings class of each `kind` of a union, in the union's order; a class of several kinds stands for each."""
    plain = get_args(union)[0] if get_origin(union) is Annotated else union
    members = get_args(plain) or (plain,)
    return {kind: member for member in members for kind in get_args(member.model_fields["kind"].annotation)}


def read_kind(union: Any, default: str, former: Mapping[str, Any]) -> BeforeValidator:
    """Prepares the settings of a union for its members.

    Args:
        union: classes with a `kind`.
        default: the kind where none is given.
        former: settings and their former defaults; a kind that lacks a setting drops it at that value.
    """

    def read(settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        settings = {"kind": default, **settings}
        member = kinds(union).get(str(settings["kind"]))
        lacking = former.keys() - member.model_fields if member else ()
        return {key: value for key, value in settings.items() if key not in lacking or _plain(value) != former[key]}

    return BeforeValidator(read)


def _plain(value: Any) -> Any:
    """The value as validation will read it: YAML 1.1 leaves 1e-6 a text."""
    try:
        return float(value) if isinstance(value, str) else list(value) if isinstance(value, tuple) else value
    except ValueError:
        return value


def _within_the_folder(name: str) -> str:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or {"..", "~"} & {*path.parts} or "\\" in name or "\0" in name:
        raise ValueError("want a name within the competition's folder, such as train.csv")
    return name


FileName = Annotated[str, AfterValidator(_within_the_folder)]
Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Listed = BeforeValidator(_listed)  # reads a single text as a list of one
