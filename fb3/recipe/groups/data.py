"""The competition's files, tokens, folds, and inference."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fb3.recipe.groups.base import Count, Group, Probability, Rate, Seed


class Augment(Group):
    """Changes of a training essay's tokens, new ones each time it is drawn; special tokens stay."""

    mask: Probability = 0.0
    """Probability of a token to become the mask (after Devlin et al. 2018, arXiv:1810.04805)."""
    delete: Probability = 0.0
    """Probability of a token to be left out (Wei & Zou 2019, arXiv:1901.11196)."""
    swap: Probability = 0.0
    """Probability of a token to change places with the next (the same paper)."""
    cut: Probability = 0.0
    """Share of the essay that one span takes out (Shen et al. 2020, arXiv:2009.13818)."""

    @model_validator(mode="after")
    def _something(self) -> "Augment":
        if not (self.mask or self.delete or self.swap or self.cut):
            raise ValueError("augment does nothing with all of mask, delete, swap and cut at 0; leave it out")
        return self


class DataGroup(Group):
    """The competition's files and how a text becomes tokens."""

    id_column: str = "text_id"
    """Column of the essay's id."""
    text_column: str = "full_text"
    """Column of the essay's text."""
    target_columns: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "cohesion",
        "syntax",
        "vocabulary",
        "phraseology",
        "grammar",
        "conventions",
    )
    """Columns of the scores, in the order of the submission."""
    max_length: Annotated[int, Field(ge=8)] = 512
    """Longest input in tokens, special tokens included; longer essays are truncated."""
    truncation: Literal["head", "tail", "head_tail"] = "head"
    """Which tokens of a long essay stay: the first, the last, or half of each (Sun et al. 2019, arXiv:1905.05583)."""
    augment: Augment | None = None
    """Changes of the training essays' tokens; none: off."""
    sample: Count | None = None
    """Use only so many essays, drawn with folds.seed; none: all."""

    @model_validator(mode="after")
    def _distinct_columns(self) -> "DataGroup":
        names = [self.id_column, self.text_column, *self.target_columns]
        if len(set(names)) < len(names):
            raise ValueError(f"id_column, text_column and target_columns must differ, got {names}")
        if reserved := [n for n in names if n == "fold" or n.startswith("true_")]:
            raise ValueError(f"{reserved}: these names belong to oof.csv; rename the columns")
        return self


class FoldsGroup(Group):
    """The split (Sechidis et al. 2011, iterative stratification on all target columns)."""

    count: Annotated[int, Field(ge=2)] = 4
    """Number of folds. A `fold` column in train.csv is honoured instead."""
    seed: Seed = 42
    """Seed of the split."""
    holdout: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the essays held out in one single split, instead of folds."""


class PredictGroup(Group):
    """Inference, out of fold and on the test essays alike."""

    token_budget: Annotated[int, Field(ge=1)] | None = None
    """Tokens a batch, padding included; none: 4,096 on a CPU, 16,384 on a GPU."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Of the encoder on test essays; auto: by what the chip there really does, as in train.precision."""
    broken_gpu: Literal["cpu", "stop"] = "cpu"
    """A GPU for which torch has no kernels: go on with the CPU, or stop."""
    limit_hours: Rate = 9.0
    """The competition's limit for a submission, in hours; inference is done 5 % earlier."""
