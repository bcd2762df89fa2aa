"""A classical estimator on fixed features, in the place of a fine-tuned encoder."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fb3.recipe.settings import Count, Rate, Settings, Share


class EmbeddingsSettings(Settings):
    """Mean vectors of an encoder that stays as it is."""

    kind: Literal["embeddings"]
    """The mean of the token states, scaled to length 1 by layer (Reimers & Gurevych 2019, arXiv:1908.10084)."""
    encoder: str
    """A local folder, a hub id, or a run folder: then fold k takes the vectors of that run's fold k."""
    layers: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Layers counted from the top, 1 the last, side by side; none: the last four (arXiv:1810.04805, section 5.3)."""
    normalise: bool = True
    """Scale each layer's mean to length 1."""


class TfidfSettings(Settings):
    """Counts of n-grams, weighed by how rare they are (TF-IDF, Spärck Jones 1972), each text scaled to length 1."""

    kind: Literal["tfidf"]
    """The logarithm of a term's count, times the logarithm of the texts over those with the term."""
    of: Literal["words", "characters"] = "words"
    """words: of two letters and more, in lower case; characters: within words, a space at both ends."""
    shortest: Count = 1
    """Fewest words or characters of a term."""
    longest: Count = 2
    """Most words or characters of a term."""
    min_texts: Count = 3
    """Training texts that hold a term, at least."""
    most: Count = 100_000
    """Most terms; those in the most training texts are kept."""

    @model_validator(mode="after")
    def _in_order(self) -> "TfidfSettings":
        if self.longest < self.shortest:
            raise ValueError(f"longest={self.longest} is less than shortest={self.shortest}; swap them")
        return self


class FramesFeatureSettings(Settings):
    """The frames of data.frames beside or without the texts."""

    kind: Literal["frames"]
    """The mean of an item's frames, data.frames.most of them; an item without frames has the training items' mean."""


FeatureSettings = Annotated[EmbeddingsSettings | TfidfSettings | FramesFeatureSettings, Field(discriminator="kind")]


class BaseEstimatorSettings(Settings):
    """Settings that all estimators share. Statistics of the texts are a feature too, with data.text.statistics."""

    kind: str
    """The estimator."""
    features: tuple[FeatureSettings, ...] = ()
    """The features, side by side; each encoder's vectors, and frames, are centred, with a total variance of 1."""
    statistics_weight: Annotated[float, Field(gt=0)] = 0.3
    """Total variance of the texts' statistics beside the encoders' 1, where data.text.statistics is on."""


class SvrSettings(BaseEstimatorSettings):
    """Support vector regression with an RBF kernel, a machine for each column (Drucker et al. 1996)."""

    kind: Literal["svr"]
    """Numbers only. The time grows with the square of the essays."""
    C: Rate = 1.0
    """Price of an error beyond epsilon; a larger one fits more closely."""
    epsilon: Annotated[float, Field(ge=0)] = 0.1
    """Error that costs nothing, in standard deviations of the column."""
    gamma: Rate | None = None
    """Width of the kernel exp(-gamma |x - y|²). none: 1 / (features · their variance), scikit-learn's 'scale'."""


class RidgeSettings(BaseEstimatorSettings):
    """Linear regression with an L2 penalty (Hoerl & Kennard 1970)."""

    kind: Literal["ridge"]
    """Numbers only."""
    alpha: Rate | None = None
    """The penalty. none: for each column, the best of 13 from 0.001 to 1,000 by leaving one essay out, which is
    measured on 5,000 training essays at most."""


class LogisticSettings(BaseEstimatorSettings):
    """Logistic regression, a column or a class against the rest."""

    kind: Literal["logistic"]
    """Labels only."""
    C: Rate = 10.0
    """The inverse of the L2 penalty; a larger one fits more closely."""


class LightgbmSettings(BaseEstimatorSettings):
    """Gradient boosting of trees (Ke et al. 2017), a model for each column or class; the package lightgbm."""

    kind: Literal["lightgbm"]
    """Numbers and labels."""
    leaves: Annotated[int, Field(ge=2)] = 8
    """Leaves of a tree, at most."""
    rounds: Count = 400
    """Trees."""
    rate: Rate = 0.03
    """Share of each tree's correction that is taken."""
    least_essays: Count = 20
    """Training essays of a leaf, at least."""
    columns: Annotated[Share, Field(gt=0)] = 0.1
    """Share of the features that a tree may look at."""


class KnnSettings(BaseEstimatorSettings):
    """The mean of the nearest training essays' truths (Cover & Hart 1967)."""

    kind: Literal["knn"]
    """Numbers and labels; cosine distance, and weights of 1 / distance."""
    neighbours: Count = 30
    """Nearest essays."""


_Estimator = SvrSettings | RidgeSettings | LogisticSettings | LightgbmSettings | KnnSettings
EstimatorSettings = Annotated[_Estimator, Field(discriminator="kind")]
OF_NUMBERS, OF_LABELS = {"svr", "ridge"}, {"logistic"}
KEEPS_ESSAYS = {"svr", "knn"}  # estimators that compare with training essays, whose features they keep
