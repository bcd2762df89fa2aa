"""Settings of training on pseudo-labels: predictions of models in the place of truths."""

from typing import Literal

from pydantic import model_validator

from fb3.recipe.settings import Count, Rate, Settings


class PseudoSettings(Settings):
    """Pseudo-labels (Lee 2013, "Pseudo-Label", ICML workshop) of `fb3 pseudo`, and how a run learns from them."""

    folder: str
    """The folder that `fb3 pseudo` wrote: a path from the working directory, or an absolute one. Read for training
    only. Its split must be the run's, so that no label comes from a model that saw the fold's validation essays."""
    use: Literal["stage", "mix", "distil"]
    """stage: the first epochs on pseudo-labelled essays alone, then train.epochs on true ones at lower rates; mix: both
    in every epoch; distil: each essay's loss against the truth, and beside it the loss against the teacher's
    out-of-fold prediction (Hinton et al. 2015, arXiv:1503.02531)."""
    weight: Rate | None = None
    """mix: weight of a pseudo-labelled essay, where a true one has 1; none: 0.5. distil: weight of the loss against the
    teacher, where the loss against the truth has 1; none: 1."""
    epochs: Count | None = None
    """stage: passes over the pseudo-labelled essays before the train.epochs on true ones; none: 2. Tricks count
    them too."""
    true_rate: Rate | None = None
    """stage: factor of all learning rates in the train.epochs that follow; none: 0.15, about that of FB3's winner
    (Rohit Singh, Kaggle write-up 369457: encoder 1e-5 and then 1.5e-6, decoder 3e-5 and then 8e-6)."""
    allow_leaks: bool = False
    """Train on labels that were made for another split, whose models saw validation essays: the score is no CV then,
    which it says of itself wherever it is shown."""

    @model_validator(mode="after")
    def _does_something(self) -> "PseudoSettings":
        idle = {"stage": ["weight"]}.get(self.use, ["epochs", "true_rate"])
        if given := [name for name in idle if getattr(self, name) is not None]:
            raise ValueError(f"{given[0]} does nothing with use={self.use}; leave it out")
        return self

    def first_epochs(self) -> int:
        """Epochs on pseudo-labelled essays alone."""
        return (self.epochs or 2) if self.use == "stage" else 0

    def later_rate(self) -> float:
        """The factor of the rates after these epochs."""
        return (self.true_rate or 0.15) if self.use == "stage" else 1.0

    def essay_weight(self) -> float:
        """The weight of a pseudo-labelled essay's loss."""
        return (self.weight or 0.5) if self.use == "mix" else 1.0

    def leak(self) -> str:
        """The reason why the run's score is no CV, in words; empty where it is one."""
        if self.allow_leaks:
            return f"trained on pseudo-labels of models that saw its validation essays (pseudo.folder={self.folder})"
        if self.use == "distil":
            return "distilled: the teacher's predictions of training essays come from models that saw validation essays"
        return ""
