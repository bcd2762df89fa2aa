"""An encoder whose states a backend computes; it is called like the encoder itself."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fb3.errors import one_line
from fb3.models.layer_stack import longest_input
from fb3.prediction.backends.functional_encoder import FunctionalEncoder, as_output
from fb3.system.progress import say

Run = Callable[[Tensor, Tensor], Sequence[Tensor]]  # input_ids and attention_mask (B, T) to states, float32
_PROBE = (33, 20)  # tokens of the check's two texts: shapes that the conversion has not seen
_WINDOWS = ("local_attention", "sliding_window")  # a config's keys for how far a token sees; the texts reach further


class BackendEncoder(nn.Module):
    """An encoder whose states a backend computes, until it fails; from then on torch does.

    Args:
        encoder: torch's, kept for a failure, and since the backend may share its weights' memory.
        reads: the part of its output that the pooling reads.
        run: the backend.
        name: the fold's, for messages.
    """

    def __init__(self, encoder: nn.Module, reads: str, run: Run, name: str) -> None:
        super().__init__()
        self.encoder, self.reads, self.name = encoder, reads, name
        self.run: Run | None = run

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **arguments: bool) -> object:
        """The encoder's own output, with only the part that the pooling reads."""
        try:
            if self.run is not None:
                return as_output(self.reads, self.run(input_ids, attention_mask))
        except Exception as error:
            self.run = None
            say(f"{self.name}: {one_line(repr(error), 300)}; torch goes on, in fp32")
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask, **arguments)

    @torch.no_grad()
    def check(self, tolerance: float) -> None:
        """Compares the states of two made-up texts with torch's: a conversion may hold only for the shapes it saw.

        A ValueError where they differ by more than `tolerance`, relative to their norm.
        """
        config = self.encoder.config
        window = next((w for name in _WINDOWS if isinstance(w := getattr(config, name, None), int)), 0)
        lengths = torch.tensor(_PROBE) + window
        longest = min(int(lengths.max()), longest_input(self.encoder) or int(lengths.max()))
        mask = (torch.arange(longest) < lengths.clamp(max=longest)[:, None]).long()
        ids = (torch.arange(mask.numel()).reshape(mask.shape) * 7 + 3) % config.vocab_size
        ids = torch.where(mask.bool(), ids, config.pad_token_id)
        want = FunctionalEncoder(self.encoder, self.reads)(ids, mask)
        keep = mask if want[0].ndim == 3 else torch.ones(len(mask))
        for mine, theirs in zip(self.run(ids, mask), want, strict=True):
            if not mine.isfinite().all():  # padding counts: a pooling multiplies it by 0, and NaN would stay NaN
                raise ValueError("its states are not all numbers")
            error = (mine - theirs)[keep.bool()].norm() / theirs[keep.bool()].norm()
            if not error <= tolerance:
                raise ValueError(f"its states differ from torch's by {error:.1%}")
