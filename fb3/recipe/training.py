"""The loop, the optimizer, the schedule."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fb3.recipe.settings import Count, Listed, Probability, Rate, Seed, Settings, Share

MANY_STEPS = 10**6  # after so many, Adam's bias corrections are 1 to the last bit


class SoupSettings(Settings):
    """Weights of the best evaluations averaged at a fold's end (Wortsman et al. 2022, arXiv:2203.05482)."""

    kind: Literal["uniform", "greedy"] = "greedy"
    """uniform: all of them; greedy: from the best on, each that betters the out-of-fold score."""
    top: Annotated[int, Field(ge=2)] = 5
    """Evaluations that are kept for it; train.evaluate_every_steps makes more of them."""


class TrainSettings(Settings):
    """The loop."""

    epochs: Count = 5
    """Passes over the training essays."""
    batch_size: Count = 8
    """Essays a batch, over all processes together."""
    accumulation: Count = 1
    """Batches whose gradients are added up before one optimizer step."""
    seed: Seed = 42
    """Seed of the weights, the dropout and the order of batches; fold f uses seed + f."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Mixed precision; auto: bf16 where the chip really does it, fp16 on older GPUs, else fp32."""
    evaluate_every_steps: Count | None = None
    """Evaluate after every so many optimizer steps too, not only at the end of each epoch."""
    broken_gpu: Literal["cpu", "stop"] = "stop"
    """A GPU for which torch has no kernels: stop, or go on with the CPU."""
    keep: Literal["best", "all"] = "best"
    """Which evaluations leave a checkpoint in the fold folder."""
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
        """Only at the run's end."""
        return self.epochs == 1 and self.evaluate_every_steps is None


class OptimizerSettings(Settings):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) and its parameter groups."""

    kind: Literal["adamw", "radam", "nadam", "adafactor", "ranger", "lamb", "madgrad", "adamw_8bit"] = "adamw"
    """adamw; radam: rectified (Liu et al. 2019, arXiv:1908.03265); nadam: with Nesterov's momentum (Dozat 2016);
    adafactor: rows and columns for a second moment, no first one (Shazeer & Stern 2018, arXiv:1804.04235); ranger:
    radam with lookahead and centred gradients (Yong et al. 2020, arXiv:2004.01461); lamb: each tensor moves by a share
    of its norm (You et al. 2019, arXiv:1904.00962); madgrad: dual averaging (Defazio & Jelassi 2021,
    arXiv:2101.11075); adamw_8bit: moments in 8 bits (Dettmers et al. 2021, arXiv:2110.02861). ranger, lamb and madgrad
    want `pip install pytorch_optimizer`, adamw_8bit bitsandbytes and a GPU."""
    encoder_rate: Rate = 5e-5
    """Peak learning rate of the encoder's top layer."""
    embeddings_rate: Rate | None = None
    """Peak learning rate of the embeddings; none: that of a layer below the lowest."""
    head_rate: Rate = 5e-5
    """Peak learning rate of pooling and head. Small encoders want more than their encoder rate."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Each lower layer's rate is this times the one above (Howard & Ruder 2018, arXiv:1801.06146; Clark et al. 2020,
    arXiv:2003.10555)."""
    decay_by: Literal["layer", "thirds"] = "layer"
    """What layer_decay counts: each layer, or thirds of the encoder, the embeddings with the lowest."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay; none on biases and normalisation weights."""
    eps: Rate = 1e-6
    """Added to the root of Adam's second moment; in madgrad to a cube root, and to the rate."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    bias_correction: bool = True
    """Make up for moments that start at 0. False is BertAdam (Devlin et al. 2018, arXiv:1810.04805): at first steps up
    to six times as long, which makes short fine-tuning unstable (Mosbach et al. 2020, arXiv:2006.04884)."""
    clip: Rate = 1000.0
    """Largest norm of all gradients together."""
    unscale: bool = True
    """Take fp16's loss scale out of the gradients before clipping. False reproduces published runs that clipped the
    scaled gradients; it changes nothing outside fp16."""

    @model_validator(mode="after")
    def _known_to_the_kind(self) -> "OptimizerSettings":
        if self.betas != (0.9, 0.999) and self.kind in {"adafactor", "madgrad"}:
            raise ValueError(f"betas do nothing in {self.kind}; leave them out")
        if self.eps != 1e-6 and self.kind == "adafactor":
            raise ValueError("eps does nothing in adafactor; leave it out")
        if not self.bias_correction and self.kind != "adamw":
            raise ValueError(f"bias_correction=false is of adamw, not of {self.kind}; leave it out")
        if not self.bias_correction and 1.0 - max(self.betas) ** MANY_STEPS < 1.0:
            raise ValueError(f"bias_correction=false: betas {self.betas} are too near to 1; give 0.9999 at most")
        return self


class ScheduleSettings(Settings):
    """The learning rate over the run, counted in optimizer steps."""

    kind: Literal["cosine", "cosine_restarts", "linear", "polynomial", "constant"] = "cosine"
    """Shape after the warm-up (cosine, with and without restarts: Loshchilov & Hutter 2016, arXiv:1608.03983)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    warmup_share: Share = 0.0
    """The same as a share of all steps; give one of the two."""
    cycles: Annotated[float, Field(gt=0)] = 0.5
    """Waves of the cosine; 0.5 falls once from the peak to 0. With restarts: falls from the peak to 0, a whole
    number."""
    power: Annotated[float, Field(gt=0)] = 2.0
    """Of the polynomial; 1 is linear."""
    floor: Probability = 0.0
    """The rate falls no lower than this share of its peak; averaging wants a rate that still moves the weights."""

    @model_validator(mode="after")
    def _one_warmup(self) -> "ScheduleSettings":
        if self.warmup_steps and self.warmup_share:
            raise ValueError("give warmup_steps or warmup_share, not both")
        if self.cycles != 0.5 and self.kind not in {"cosine", "cosine_restarts"}:
            raise ValueError(f"cycles does nothing in a {self.kind} schedule; leave it out or take kind: cosine")
        if self.kind == "cosine_restarts" and (self.cycles < 2 or self.cycles % 1):
            raise ValueError(
                f"cosine_restarts falls a whole number of times; give cycles: 2 or more, not {self.cycles}"
            )
        if self.power != 2.0 and self.kind != "polynomial":
            raise ValueError(f"power does nothing in a {self.kind} schedule; leave it out or take kind: polynomial")
        if self.floor and self.kind == "constant":
            raise ValueError("floor does nothing in a constant schedule; leave it out")
        return self
