"""Peers that fb3 is compared with, given the same scorer and tokens: the notebooks' loop and transformers' Trainer.

Beside them the shapes of known encoders, and the rate of matrix products that MFU counts against.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fb3.models.kernels import blocked_attention as attention
from fb3.models.kernels.deberta import eager_attention
from fb3.models.kernels.packed_linear import PackedLinear

V3 = {
    "model_type": "deberta-v2",
    "relative_attention": True,
    "position_buckets": 256,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
SHAPES = {
    "bert-base": {"model_type": "bert"},
    "deberta-v3-base": V3
    | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "deberta-v3-large": V3
    | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "tiny": V3 | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Rows = Sequence[Mapping[str, Sequence[int]]]


def restore_attention(encoder: nn.Module) -> None:
    """Gives an encoder back the attention that transformers built it with."""
    eager_attention(encoder).__enter__()
    if getattr(encoder.config, "_attn_implementation", None) == attention._NAME:
        encoder.set_attn_implementation("sdpa")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast in a precision; in fp32 none."""
    dtype = DTYPES[precision] if precision != "fp32" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def plain_scores(scorer: nn.Module, batches: Iterable[Mapping[str, Tensor]], precision: str) -> np.ndarray:
    """The notebooks' loop, batch after batch, (N, K)."""
    device, parts = next(scorer.parameters()).device, []
    with torch.no_grad(), autocast(device, precision):
        for batch in batches:
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            parts.append(scorer(batch).scores.float().cpu())
    return torch.cat(parts).numpy()


def trainer_scores(scorer: nn.Module, rows: Rows, collate: Callable, batch: int, precision: str) -> np.ndarray:
    """transformers' Trainer.predict, with sorting by length done for it, (N, K).

    Args:
        scorer: on its device.
        rows: input_ids and attention_mask of each essay.
        collate: rows to a padded batch.
        batch: essays at once.
        precision: of autocast.
    """
    from transformers import Trainer, TrainingArguments

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scorer = scorer

        def forward(self, input_ids, attention_mask):
            return {"logits": self.scorer({"input_ids": input_ids, "attention_mask": attention_mask}).scores}

    order = np.argsort([-len(row["input_ids"]) for row in rows], kind="stable")
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, per_device_eval_batch_size=batch, **_settings(next(scorer.parameters()).device, precision)
        )
        found = Trainer(Wrapped(), settings, data_collator=collate).predict([rows[row] for row in order]).predictions
    scores = np.empty_like(found)
    scores[order] = found
    return scores


def plain_training(scorer, batches, task, optimizer, schedule, clip, precision) -> list[Tensor]:
    """The notebooks' loop over padded batches with their targets; the losses."""
    device, losses = next(scorer.parameters()).device, []
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    for batch in batches:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with autocast(device, precision):
            loss = task.loss(scorer, batch).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def trainer_training(scorer, rows, collate, task, optimizer, schedule, clip, precision, batch) -> list[Tensor]:
    """transformers' Trainer over one epoch, essays of like length together; rows have labels. The losses."""
    from transformers import Trainer, TrainingArguments

    losses = []

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scorer = scorer

        def forward(self, input_ids, attention_mask, labels):
            batch = {"input_ids": input_ids, "attention_mask": attention_mask, "targets": labels}
            loss = task.loss(self.scorer, batch).loss
            losses.append(loss.detach())
            return {"loss": loss}

    known = TrainingArguments.__dataclass_fields__
    grouped = {"train_sampling_strategy": "group_by_length"}
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            max_grad_norm=clip,
            save_strategy="no",
            logging_strategy="no",
            **_settings(next(scorer.parameters()).device, precision),
            **(grouped if "train_sampling_strategy" in known else {"group_by_length": True}),
        )
        Trainer(Wrapped(), settings, collate, rows, optimizers=(optimizer, schedule)).train()
    return losses


def _settings(device: torch.device, precision: str) -> dict[str, Any]:
    """Settings that every Trainer here shares; resets the state that an earlier Accelerator of this process left."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    lowered = {"bf16": precision == "bf16", "fp16": precision == "fp16"}
    return {**lowered, "use_cpu": device.type == "cpu", "report_to": [], "disable_tqdm": True}


@torch.inference_mode()
def product_rate(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 20) -> float:
    """FLOP a second of the fastest of several square matrix products; in bf16 on a CPU with packed weights."""
    layer = nn.Linear(size, size, bias=False, device=device, dtype=dtype)
    if device.type == "cpu" and dtype == torch.bfloat16:
        layer = PackedLinear(layer)
    states, best = torch.randn(size, size, device=device, dtype=dtype), 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        float(layer(states)[0, 0])  # waits for a GPU
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def peak() -> float:
    """FLOP a second of the best bf16 matrix product, on the device that computes."""
    from fb3.system.devices import pick_device

    device = pick_device()
    return product_rate(device, torch.bfloat16, 8192 if device.type == "cuda" else 1536)
