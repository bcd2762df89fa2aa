"""Image encoders of transformers: a picture becomes a vector, prepared by the encoder's own processor."""

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from fb3.errors import Fb3Error
from fb3.models.backbone import check_config, explained, without_report
from fb3.models.backbone_files import IMAGE_KEY, Source, find_backbone
from fb3.models.picture_processor import PictureProcessor
from fb3.system.devices import Precision, pick_precision

if TYPE_CHECKING:
    from PIL import Image  # runs on texts alone need no Pillow

_COMPUTED = ("position_ids", "relative_position_index")  # buffers that a model makes itself; a file may lack them
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_DTYPE = {"fp16": torch.float16, "bf16": torch.bfloat16}
_GREY = (128, 128, 128)


class ImageEncoder:
    """A frozen image encoder with its processor, such as CLIP's vision tower, ViT, DINOv2, Swin, ConvNeXt or SigLIP.

    A model of the package timm is read by transformers' wrapper, where timm and torchvision are installed.

    A picture's vector is the first of these that the model has (`vector` names it):

    - pooler_output, computed without a linear layer of its own: the first token behind the last norm (CLIP, Radford et
      al. 2021, arXiv:2103.00020; DINOv2), the mean of patches (Swin, Liu et al. 2021, arXiv:2103.14030; ConvNeXt, Liu
      et al. 2022, arXiv:2201.03545), or the attention of SigLIP (Zhai et al. 2023, arXiv:2303.15343);
    - class_token: the first token's last state (ViT, Dosovitskiy et al. 2021, arXiv:2010.11929; DeiT). The linear layer
      of their pooler is passed over: most checkpoints lack it, and one that was saved again may hold a random one;
    - mean: the mean of the patches' last states.

    Args:
        backbone: a folder with config.json, weights and preprocessor_config.json, or a model of the hub.
        device: computes in fp32 where it is a CPU; a GPU computes by autocast in its fast precision.
        key: names the encoder in errors, IMAGE_KEY or FRAMES_KEY.

    Attributes:
        width: numbers of a vector.

    Raises:
        Fb3Error: a file is missing or broken, a weight is missing, or the model reads no pictures.
    """

    vector: str
    width: int
    dtype = np.float16

    def __init__(self, backbone: str, device: torch.device, key: str = IMAGE_KEY) -> None:
        source, self.place = find_backbone(backbone, key), f"{key}={backbone}"
        self.device = device
        self.precision: Precision = "fp32" if device.type == "cpu" else pick_precision("auto", device)
        with explained(self.place, source), without_report():
            if source.is_folder:
                check_config(Path(source.name))
            options = {"local_files_only": source.local, "trust_remote_code": False}
            self.processor = PictureProcessor(source, self.place)
            self._whole = self._load(source, options)
        # transformers' vision models wrap the tower that its models of pictures and texts hold themselves.
        self.model = getattr(self._whole, "vision_model", self._whole).float().eval().to(device)
        self._probe()

    def _load(self, source: Source, options: Mapping[str, bool]) -> nn.Module:
        config = AutoConfig.from_pretrained(source.name, **options)
        tower = getattr(config, "vision_config", None)  # a model of pictures and texts has a tower for each
        if type(tower) in AutoModel._model_mapping:
            options = {**options, "config": tower}
        model, report = AutoModel.from_pretrained(source.name, output_loading_info=True, weights_only=True, **options)
        inner = getattr(model, "vision_model", model)
        if getattr(inner, "main_input_name", "pixel_values") != "pixel_values":
            raise Fb3Error(f"{self.place}: reads no pictures; give an image encoder, such as CLIP, ViT or Swin")
        missing = [key for key in report["missing_keys"] if "pooler" not in key and not key.endswith(_COMPUTED)]
        if missing:
            raise Fb3Error(
                f"{self.place}: {len(missing)} weights are not in the file, so they would be random: "
                f"{sorted(missing)[:5]}; is it the encoder that config.json describes?"
            )
        return model

    @torch.inference_mode()
    def _probe(self) -> None:
        """Sends a grey picture the whole way, which shows what the model gives and that the processor fits it."""
        from PIL import Image

        with explained(self.place):
            out = self._forward(self.prepare(Image.new("RGB", (64, 48), _GREY))[None])
            self.vector = kind_of_vector(self.model, out)
            self.width = self._read(out).shape[1]

    def prepare(self, picture: "Image.Image") -> Tensor:
        """Pixels (3, H, W) float32 of an RGB picture, as the encoder's processor resizes, cuts and scales it."""
        return self.processor.prepare(picture)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> np.ndarray:
        """Vectors (B, width) float16 of pixels (B, 3, H, W)."""
        return self._read(self._forward(pixels)).half().cpu().numpy()

    def _forward(self, pixels: Tensor) -> Mapping[str, Tensor]:
        with self._autocast():
            return self.model(pixel_values=pixels.to(self.device))

    def _autocast(self) -> AbstractContextManager:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPE[self.precision])

    def _read(self, out: Mapping[str, Tensor]) -> Tensor:
        return read_vectors(out, self.vector)

    def save(self, folder: Path) -> None:
        """Writes the encoder, without a tower of texts, and its processor; read again, it gives the same vectors."""
        self._whole.save_pretrained(folder, max_shard_size="1TB")  # in one file, whose name is known
        if not self.processor.of_timm:
            self.processor.save(folder)

    def description(self) -> dict[str, Any]:
        """Everything that decides a vector but the picture: equal descriptions, equal vectors up to rounding."""
        return {
            "weights": self._digest(),
            "processor": self.processor.settings(),
            "vector": self.vector,
            "precision": self.precision,
        }

    def _digest(self) -> str:
        """A hash of the weights, whatever their names: these differ between versions of transformers."""
        weights = [value for name, value in self.model.state_dict().items() if not name.endswith(_COMPUTED)]
        hashes = (hashlib.sha256(value.cpu().contiguous().numpy().tobytes()).hexdigest() for value in weights)
        return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()


def kind_of_vector(model: nn.Module, out: Mapping[str, Tensor]) -> str:
    """The vector that is taken of a model, by an output of it; see `ImageEncoder`."""
    if not _has_linear(getattr(model, "pooler", None)) and out.get("pooler_output") is not None:
        return "pooler_output"
    names = (name for name, _ in model.named_parameters())
    return "class_token" if any(name.endswith(_CLASS_TOKENS) for name in names) else "mean"


def read_vectors(out: Mapping[str, Tensor], vector: str) -> Tensor:
    """The vectors (B, width) float32 in a model's output."""
    if vector == "pooler_output":
        return out["pooler_output"].flatten(1).float()  # some give (B, D, 1, 1)
    states = out["last_hidden_state"].float()  # (B, T, D), or (B, D, H, W) from a convolutional net
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)
    return states[:, 0] if vector == "class_token" else states.mean(1)


def _has_linear(pooler: nn.Module | None) -> bool:
    return pooler is not None and any(isinstance(module, nn.Linear) for module in pooler.modules())
