"""Settings of the loop, the optimizer and the schedule."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fb3.recipe.settings import Count, Listed, Probability, Rate, Seed, Settings, Share, read_kind

MANY_STEPS = 10**6  # after so many, Adam's bias corrections are 1 to the last bit


class SoupSettings(Settings):
    """Weights of the best evaluations averaged at a fold's end (Wortsman et al. 2022, arXiv:2203.05482)."""

    kind: Literal["uniform", "greedy"] = "greedy"
    """uniform: all of them; greedy: from the best on, each that betters the out-of-fold score."""
    top: Annotated[int, Field(ge=2)] = 5
    """Evaluations that are kept for it; train.evaluate_every_steps makes more of them."""


def _one_way(value: Any) -> Any:
    """Refuses what is no way to sample, in one sentence: a union's own errors name each of its members."""
    named = isinstance(value, str) and value in {"balanced", "sqrt"}
    counts = isinstance(value, dict) and value and all(str(key).isdecimal() and int(key) for key in value)
    factors = counts and all(isinstance(factor, int | float) and factor > 0 for factor in value.values())
    if not (value is None or named or factors):
        raise ValueError("want balanced, sqrt, or counts with factors, such as {100: 5, 500: 3}")
    return value


SamplingWay = Annotated[Literal["balanced", "sqrt"] | dict[Count, Rate], BeforeValidator(_one_way)]


class TrainSettings(Settings):
    """The loop."""

    epochs: Count = 5
    """Passes over the training essays."""
    batch_size: Count = 8
    """Essays a batch, over all processes together."""
    accumulation: Count = 1
    """Batches whose gradients are added up before one optimizer step."""
    sampling: SamplingWay | None = None
    """Draw training essays with replacement, as many as there are: balanced: each class equally often; sqrt: in
    proportion to the root of its count (Mahajan et al. 2018, arXiv:1805.00932); {100: 5, 500: 3}: essays of classes
    with fewer than 100 of them have five times the chance of others, and those with fewer than 500 three times. An
    essay of several labels counts for its rarest, one without a label for a class of its own, and a pseudo-labelled one
    for its likeliest. none: each essay once an epoch."""
    seed: Seed = 42
    """Seed of the weights, the dropout and the order of batches; fold f uses seed + f."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Mixed precision; auto: bf16 where the chip really does it, fp16 on older GPUs, else fp32."""
    evaluate_every_steps: Count | None = None
    """Evaluate after every so many optimizer steps too, not only at the end of each epoch."""
    broken_gpu: Literal["cpu", "stop"] = "stop"
    """A GPU for which torch has no kernels: stop, or go on with the CPU."""
    keep: Literal["best", "all"] = "best"
    """Evaluations that leave a checkpoint in the fold folder."""
    soup: SoupSettings | None = None
    """Average the best evaluations' weights; kept where that scores better than each; none: off."""
    save_every_minutes: Rate | None = 10.0
    """Minutes between two saves from which a stopped run goes on; none: not by time. A save holds the weights and the
    optimizer's moments (MiniLM: 270 MB); two stand on the disk."""
    save_every_steps: Count | None = None
    """The same in optimizer steps; both may be given."""
    log_every_steps: Count = 20
    """Optimizer steps in a window, one log line each."""
    trackers: Annotated[tuple[Literal["wandb", "tensorboard"], ...], Listed] = ()
    """Experiment trackers beside log.jsonl, through accelerate; wandb stays offline unless Kaggle's secrets hold
    WANDB_API_KEY."""

    @model_validator(mode="after")
    def _soup_has_ingredients(self) -> "TrainSettings":
        if self.soup and self.evaluates_once():
            raise ValueError("soup averages evaluations, and there is one; raise epochs or give evaluate_every_steps")
        return self

    def evaluates_once(self) -> bool:
        """Whether the only evaluation is at the run's end."""
        return self.epochs == 1 and self.evaluate_every_steps is None


class BaseOptimizerSettings(Settings):
    """Settings of all optimizers: rates, decay of the weights apart from the gradient, clipping."""

    kind: str
    """The optimizer."""
    encoder_rate: Rate = 5e-5
    """Peak learning rate of the encoder's top layer."""
    embeddings_rate: Rate | None = None
    """Peak learning rate of the embeddings; none: the rate of a layer below the lowest."""
    head_rate: Rate = 5e-5
    """Peak learning rate of pooling and head. Small encoders want more than their encoder rate."""
    image_rate: Rate | None = None
    """Peak learning rate of the image encoder that data.frames.encoder names, such as a tenth of encoder_rate; each
    fold then has its own. none: it stays frozen, and all folds share its vectors, which is faster by far."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Each lower layer's rate is this times the one above (Howard & Ruder 2018, arXiv:1801.06146; Clark et al. 2020,
    arXiv:2003.10555)."""
    decay_by: Literal["layer", "thirds"] = "layer"
    """The steps of layer_decay: each layer, or thirds of the encoder, the embeddings with the lowest."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay; none on biases and normalisation weights."""
    clip: Rate = 1000.0
    """Largest norm of all gradients together."""
    unscale: bool = True
    """Take fp16's loss scale out of the gradients before clipping. False reproduces published runs that clipped the
    scaled gradients; it changes nothing outside fp16."""

    @model_validator(mode="after")
    def _decays_by_something(self) -> "BaseOptimizerSettings":
        if self.decay_by == "thirds" and self.layer_decay == 1.0:
            raise ValueError("decay_by does nothing with layer_decay=1.0; leave it out")
        return self


class AdafactorSettings(BaseOptimizerSettings):
    """Adafactor (Shazeer & Stern 2018, arXiv:1804.04235)."""

    kind: Literal["adafactor"]
    """The second moment by rows and columns, no first one."""


class MadgradSettings(BaseOptimizerSettings):
    """MADGRAD (Defazio & Jelassi 2021, arXiv:2101.11075); wants `pip install pytorch_optimizer`."""

    kind: Literal["madgrad"]
    """Dual averaging."""
    eps: Rate = 1e-6
    """Added to a cube root, and to the rate."""


class AdamSettings(BaseOptimizerSettings):
    """Relatives of Adam: steps by a first and a second moment of the gradient."""

    kind: Literal["radam", "nadam", "ranger", "lamb", "adamw_8bit"]
    """radam: rectified (Liu et al. 2019, arXiv:1908.03265); nadam: with Nesterov's momentum (Dozat 2016); ranger: radam
    with lookahead and centred gradients (Yong et al. 2020, arXiv:2004.01461); lamb: each tensor moves by a share of its
    norm (You et al. 2019, arXiv:1904.00962); adamw_8bit: moments in 8 bits (Dettmers et al. 2021, arXiv:2110.02861).
    ranger and lamb want `pip install pytorch_optimizer`, adamw_8bit bitsandbytes and a GPU."""
    eps: Rate = 1e-6
    """Added to the root of the second moment."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """Decay rates of the first and second moment."""


class AdamWSettings(AdamSettings):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    """Adam with decoupled weight decay."""
    bias_correction: bool = True
    """Make up for moments that start at 0. False is BertAdam (Devlin et al. 2018, arXiv:1810.04805): at first steps up
    to six times as long, which makes short fine-tuning unstable (Mosbach et al. 2020, arXiv:2006.04884)."""

    @model_validator(mode="after")
    def _bert_adam_is_exact(self) -> "AdamWSettings":
        if not self.bias_correction and 1.0 - max(self.betas) ** MANY_STEPS < 1.0:
            raise ValueError(f"bias_correction=false: betas {self.betas} are too near to 1; give 0.9999 at most")
        return self


class BaseScheduleSettings(Settings):
    """The learning rate over the run, counted in optimizer steps."""

    kind: str
    """Shape after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    warmup_share: Share = 0.0
    """The same as a share of all steps; give one of the two."""

    @model_validator(mode="after")
    def _one_warmup(self) -> "BaseScheduleSettings":
        if self.warmup_steps and self.warmup_share:
            raise ValueError("give warmup_steps or warmup_share, not both")
        return self


class ConstantScheduleSettings(BaseScheduleSettings):
    """The peak rate to the end."""

    kind: Literal["constant"]
    """Never falls."""


class FallingScheduleSettings(BaseScheduleSettings):
    """From the peak to 0, or to a floor."""

    floor: Probability = 0.0
    """The rate falls no lower than this share of its peak; averaging wants a rate that still moves the weights."""


class LinearScheduleSettings(FallingScheduleSettings):
    """A straight line."""

    kind: Literal["linear"]
    """Falls evenly."""


class PolynomialScheduleSettings(FallingScheduleSettings):
    """A power of the share of the run that is left."""

    kind: Literal["polynomial"]
    """Falls fast, then slowly."""
    power: Annotated[float, Field(gt=0)] = 2.0
    """The exponent; 1 is linear."""


class CosineScheduleSettings(FallingScheduleSettings):
    """A cosine (Loshchilov & Hutter 2016, arXiv:1608.03983)."""

    kind: Literal["cosine"] = "cosine"
    """Falls slowly at both ends."""
    cycles: Annotated[float, Field(gt=0)] = 0.5
    """Waves of the cosine; 0.5 falls once from the peak to 0."""


class RestartsScheduleSettings(FallingScheduleSettings):
    """A cosine with warm restarts (the same paper)."""

    kind: Literal["cosine_restarts"]
    """Falls several times, and jumps back to the peak in between."""
    cycles: Annotated[int, Field(ge=2)]
    """How many times it falls."""


# The kinds of these groups share most settings, and were one class once: recipes saved then hold the settings of all
# kinds. A setting that the recipe's kind lacks is dropped where it stands at the default of that time.
FORMER_DEFAULTS = {
    "optimizer": {"eps": 1e-6, "betas": [0.9, 0.999], "bias_correction": True},
    "schedule": {"cycles": 0.5, "power": 2.0, "floor": 0.0},
}
_Optimizer = AdamWSettings | AdamSettings | AdafactorSettings | MadgradSettings
OptimizerSettings = Annotated[
    _Optimizer, Field(discriminator="kind"), read_kind(_Optimizer, "adamw", FORMER_DEFAULTS["optimizer"])
]
_Schedule = (
    CosineScheduleSettings
    | RestartsScheduleSettings
    | LinearScheduleSettings
    | PolynomialScheduleSettings
    | ConstantScheduleSettings
)
ScheduleSettings = Annotated[
    _Schedule, Field(discriminator="kind"), read_kind(_Schedule, "cosine", FORMER_DEFAULTS["schedule"])
]
