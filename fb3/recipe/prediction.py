"""Settings of inference."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fb3.recipe.settings import Rate, Settings


class PredictSettings(Settings):
    """Inference, out of fold and on the test essays alike."""

    token_budget: Annotated[int, Field(ge=1)] | None = None
    """Tokens a batch, padding included; none: 4,096 on a CPU, on a GPU as many as its memory holds, 8,192 to
    131,072."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Precision of the encoder on test essays; auto: by what the chip really does, as in train.precision; on a CPU,
    linear layers in int8 where the bundle was packed for it."""
    backend: Literal["auto", "torch", "openvino", "onnx"] = "auto"
    """Library that computes the encoder on test essays on a CPU: torch, OpenVINO in `precision`, or ONNX Runtime in
    fp32; auto: torch. Where the library is missing or fails on an encoder, and on GPUs, torch computes and says so."""
    broken_gpu: Literal["cpu", "stop"] = "cpu"
    """A GPU for which torch has no kernels: go on with the CPU, or stop."""
    limit_hours: Rate = 9.0
    """The competition's limit for a submission, in hours; inference is done 5 % earlier."""

    @model_validator(mode="after")
    def _backend_has_the_precision(self) -> "PredictSettings":
        if self.backend == "onnx" and self.precision in ("fp16", "bf16"):
            raise ValueError(
                f"backend=onnx computes in fp32, and precision={self.precision} would do nothing; leave precision "
                "out, or take backend=openvino"
            )
        return self
