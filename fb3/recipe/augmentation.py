"""Settings of augmentation: essays are changed a little each time they are drawn for training."""

from typing import Annotated

from pydantic import Field, model_validator

from fb3.recipe.settings import Probability, Settings


class SynonymsSettings(Settings):
    """Words replaced by synonyms (Wei & Zou 2019, arXiv:1901.11196), from a list of yours."""

    file: str
    """A text file; each line holds words that may stand for one another, separated by commas."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Probability that a word with synonyms is replaced by one of them."""


class AugmentSettings(Settings):
    """Changes of a training essay, new ones each time it is drawn; special tokens stay."""

    shuffle: Probability = 0.0
    """Probability that an essay comes with its sentences in another order."""
    synonyms: SynonymsSettings | None = None
    """Words replaced by synonyms; none: off."""
    typos: Probability = 0.0
    """Probability that a word is mistyped: letters swapped, left out, doubled (Belinkov & Bisk 2017,
    arXiv:1711.02173)."""
    mix: Probability = 0.0
    """Probability that another essay of the batch takes over from some point on; the targets mix by the same share
    (CutMix, Yun et al. 2019, arXiv:1905.04899, on tokens)."""
    mask: Probability = 0.0
    """Probability that a token becomes the mask (after Devlin et al. 2018, arXiv:1810.04805)."""
    delete: Probability = 0.0
    """Probability that a token is left out (Wei & Zou 2019, arXiv:1901.11196)."""
    swap: Probability = 0.0
    """Probability that a token changes places with the next (the same paper)."""
    cut: Probability = 0.0
    """Share of the essay that is cut out as one span (Shen et al. 2020, arXiv:2009.13818)."""

    @model_validator(mode="after")
    def _something(self) -> "AugmentSettings":
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError(f"augment does nothing with all of {', '.join(type(self).model_fields)} off; leave it out")
        return self
