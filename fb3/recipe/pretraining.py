"""Settings of pretraining: what an encoder learns from texts, and frames, before it is fine-tuned on scores."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fb3.recipe.settings import Count, Probability, Rate, Settings, Share


class MaskingSettings(Settings):
    """Tokens that mlm and rtd hide, new ones each time a text is drawn; special and added tokens stay."""

    kind: Literal["tokens", "words", "ngrams", "spans"] = "words"
    """tokens: each by itself (Devlin et al. 2018, arXiv:1810.04805); words: whole ones; ngrams: of one to three whole
    words, n with a probability in proportion to 1/n (He et al. 2020, arXiv:2006.03654); spans: of one to ten whole
    words, geometric (Joshi et al. 2019, arXiv:1907.10529)."""
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.15
    """Share of the tokens that are to be guessed."""
    mask: Share = 0.8
    """Share of these that become the mask."""
    random: Share = 0.1
    """Share of these that become another token; the rest stay as they are."""

    @model_validator(mode="after")
    def _shares_fit(self) -> "MaskingSettings":
        if self.mask + self.random > 1.0:
            raise ValueError(f"masking: mask {self.mask:g} and random {self.random:g} are more than 1 together")
        return self


class BaseObjectiveSettings(Settings):
    """An objective of pretraining."""

    of_batches: ClassVar[bool] = False
    """Whether it compares the texts or items of a batch, so that parts of a batch do not add up."""
    of_frames: ClassVar[bool] = False
    """Whether it reads the items' frames."""

    kind: str
    """The objective."""
    weight: Rate = 1.0
    """The loss's weight among the objectives'."""


class MlmSettings(BaseObjectiveSettings):
    """Masked language modelling (Devlin et al. 2018, arXiv:1810.04805)."""

    kind: Literal["mlm"]
    """Guess hidden tokens."""


class SimcseSettings(BaseObjectiveSettings):
    """Unsupervised SimCSE (Gao et al. 2021, arXiv:2104.08821)."""

    of_batches = True
    kind: Literal["simcse"]
    """Two dropout masks of a text give vectors nearer to each other than to other texts' vectors."""
    temperature: Rate = 0.05
    """Divides the cosines."""
    head: Literal["mlp", "none"] = "mlp"
    """A layer over the vector in pretraining alone, which the exported encoder lacks."""
    pooling: Literal["mean", "first"] = "mean"
    """The text's vector: the mean of its tokens, or the first token, as the paper has it."""


class RtdSettings(BaseObjectiveSettings):
    """Replaced token detection (Clark et al. 2020, arXiv:2003.10555), which ELECTRA and DeBERTa-v3 were trained by."""

    kind: Literal["rtd"]
    """A generator guesses hidden tokens; the encoder tells guesses that are wrong from the text's own tokens."""
    generator_depth: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The generator's layers, as a share of the encoder's: its lowest, copied, with embeddings of their own (He et al.
    2021, arXiv:2111.09543). It learns beside the encoder and is not exported."""
    discriminator_weight: Rate = 50.0
    """Weight of the encoder's loss beside the generator's."""


class OrderSettings(BaseObjectiveSettings):
    """The order of two segments of a text, cut between sentences."""

    kind: Literal["order"]
    """Tell whether a text's second segment really follows its first."""
    form: Literal["swapped", "next"] = "swapped"
    """Wrong pairs: the two segments swapped (Lan et al. 2019, arXiv:1909.11942), or a segment of another text (Devlin
    et al. 2018, arXiv:1810.04805)."""


class MfmSettings(BaseObjectiveSettings):
    """Masked frame modelling: UNITER's masked regions (Chen et al. 2020, arXiv:1909.11740), with a contrastive loss
    (Luo et al. 2020, arXiv:2002.06353)."""

    of_batches = True
    of_frames = True
    kind: Literal["mfm"]
    """Tell a hidden frame from the other frames of the batch, by the text and the frames beside it."""
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.15
    """Share of an item's frames that is hidden; one at least where there are two."""
    temperature: Rate = 0.07
    """Divides the cosines."""


TEMPERATURES = (0.001, 0.5)  # bounds of itc's, as in ALBEF


class ItcSettings(BaseObjectiveSettings):
    """Item-text contrast (Li et al. 2021, arXiv:2107.07651), without a momentum encoder and its queue."""

    of_batches = True
    of_frames = True
    kind: Literal["itc"]
    """Texts alone and frames alone give vectors nearer to their own item's than to other items'. itm then takes wrong
    pairs that are alike."""
    width: Count = 256
    """Numbers of a vector."""
    temperature: Annotated[float, Field(ge=TEMPERATURES[0], le=TEMPERATURES[1])] = 0.07
    """Divides the cosines; it is learned, from here on, between 0.001 and 0.5."""


class ItmSettings(BaseObjectiveSettings):
    """Item-text match (Chen et al. 2020, arXiv:1909.11740; Li et al. 2021, arXiv:2107.07651)."""

    of_batches = True
    of_frames = True
    kind: Literal["itm"]
    """Tell whether the frames beside a text are its own; wrong ones are another item's of the batch."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the items with frames that get another's."""


ObjectiveSettings = Annotated[
    MlmSettings | SimcseSettings | RtdSettings | OrderSettings | MfmSettings | ItmSettings | ItcSettings,
    Field(discriminator="kind"),
]


class PretrainingSettings(Settings):
    """`fb3 pretrain`; `fb3 train` reads nothing of it. Backbone, texts, seed, precision and saves are the recipe's."""

    objectives: Annotated[tuple[ObjectiveSettings, ...], Field(min_length=1)] = (MlmSettings(kind="mlm"),)
    """The objectives, in this order; those that read the same input share one forward pass."""
    masking: MaskingSettings = MaskingSettings()
    """Tokens that are hidden."""
    length: Annotated[int, Field(ge=8)] | None = None
    """Longest window in tokens, special tokens included; none: the encoder's input in data. Longer texts are cut into
    windows of nearly equal length, and nothing is left out."""
    epochs: Count = 5
    """Passes over the windows."""
    batch_size: Count = 16
    """Windows a batch, over all processes together. simcse, mfm, itm and itc learn from the others of a batch: 64
    and more."""
    accumulation: Count = 1
    """Batches whose gradients are added up before one optimizer step."""
    encoder_rate: Rate = 5e-5
    """Peak learning rate of all layers of the encoder."""
    head_rate: Rate = 5e-4
    """Peak learning rate of the objectives' heads, which begin at random."""
    warmup_share: Probability = 0.06
    """Share of the steps in which the rates rise; they fall linearly afterwards."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay; none on biases and normalisation weights."""
    clip: Rate = 1.0
    """Largest norm of all gradients together."""
    dropout: Probability = 0.1
    """Hidden dropout of the encoder in pretraining; model.dropout is fine-tuning's."""
    attention_dropout: Probability = 0.1
    """Dropout of the attention probabilities in pretraining."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the texts that are held out, to validate on."""
    patience: Count | None = 3
    """Evaluations without a better one after which the training ends; none: it goes on to its end."""

    @model_validator(mode="after")
    def _objectives_fit(self) -> "PretrainingSettings":
        kinds = [objective.kind for objective in self.objectives]
        if twice := [kind for kind in kinds if kinds.count(kind) > 1]:
            raise ValueError(f"objectives: {twice[0]} stands {kinds.count(twice[0])} times; give it once")
        if "simcse" in kinds and not (self.dropout or self.attention_dropout):
            raise ValueError(
                "objectives: simcse without dropout has two equal vectors and collapses; set dropout or "
                "attention_dropout"
            )
        comparing = [each for each in self.objectives if each.of_batches]
        if comparing and self.batch_size == 1:
            of = "items" if comparing[0].of_frames else "texts"
            raise ValueError(
                f"objectives: {comparing[0].kind} compares the {of} of a batch, and batch_size=1 has one; raise it"
            )
        return self

    def objective(self, kind: str) -> BaseObjectiveSettings | None:
        """The settings of an objective; none where it is off."""
        return next((each for each in self.objectives if each.kind == kind), None)

    def masks(self) -> bool:
        """Whether an objective guesses hidden tokens."""
        return bool(self.objective("mlm") or self.objective("rtd"))
