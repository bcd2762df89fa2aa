"""What all groups share: frozen, strict, described by docstrings."""

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


Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Listed = BeforeValidator(_listed)  # takes a single text for a list of one
