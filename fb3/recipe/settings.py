"""What all groups share: frozen, strict, described by docstrings."""

from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


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


def read_kind(union: Any, default: str, former: Mapping[str, Any] | None = None) -> BeforeValidator:
    """What reads the settings of a union before its members do.

    Args:
        union: its members have a `kind`.
        default: the kind that is meant where none is given.
        former: settings by their former defaults; the kinds that lack them take them at that value and drop them.
    """
    members = kinds(union)

    def read(settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        settings = {"kind": default, **settings}
        member = members.get(settings["kind"]) if isinstance(settings["kind"], str) else None
        for key, value in (former or {}).items():
            if member and key in settings and key not in member.model_fields and settings[key] == value:
                del settings[key]
        return settings

    return BeforeValidator(read)


Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Listed = BeforeValidator(_listed)  # takes a single text for a list of one
