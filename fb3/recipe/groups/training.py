"""The loop, the optimizer, the schedule."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fb3.recipe.groups.base import Count, Group, Probability, Rate, Seed, Share


class SoupSettings(Group):
    """Weights of the best evaluations averaged at a fold's end (Wortsman et al. 2022, arXiv:2203.05482)."""

    kind: Literal["uniform", "greedy"] = "greedy"
    """uniform: all of them; greedy: from the best on, each that betters the out-of-fold score."""
    top: Annotated[int, Field(ge=2)] = 5
    """Evaluations that are kept for it; train.evaluate_every_steps makes more of them."""


class TrainGroup(Group):
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
    log_every_steps: Count = 20
    """Optimizer steps in a window, one log line each."""
    trackers: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Experiment trackers beside log.jsonl, through accelerate; wandb stays offline unless Kaggle's secrets hold
    WANDB_API_KEY."""


class OptimizerGroup(Group):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) and its parameter groups."""

    kind: Literal["adamw", "radam", "nadam"] = "adamw"
    """adamw; radam: rectified (Liu et al. 2019, arXiv:1908.03265); nadam: with Nesterov's momentum (Dozat 2016)."""
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
    """Added to the root of Adam's second moment."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    clip: Rate = 1000.0
    """Largest norm of all gradients together."""
    unscale: bool = True
    """Take fp16's loss scale out of the gradients before clipping. False reproduces published runs that clipped the
    scaled gradients; it changes nothing outside fp16."""


class ScheduleGroup(Group):
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
    floor: Share = 0.0
    """The rate falls no lower than this share of its peak; averaging wants a rate that still moves the weights."""

    @model_validator(mode="after")
    def _one_warmup(self) -> "ScheduleGroup":
        if self.warmup_steps and self.warmup_share:
            raise ValueError("give warmup_steps or warmup_share, not both")
        if self.cycles != 0.5 and self.kind not in {"cosine", "cosine_restarts"}:
            raise ValueError(f"cycles does nothing in a {self.kind} schedule; leave it out or take kind: cosine")
        if self.kind == "cosine_restarts" and (self.cycles < 1 or self.cycles % 1):
            raise ValueError(
                f"cosine_restarts falls a whole number of times; give cycles: 2 or more, not {self.cycles}"
            )
        if self.power != 2.0 and self.kind != "polynomial":
            raise ValueError(f"power does nothing in a {self.kind} schedule; leave it out or take kind: polynomial")
        return self
