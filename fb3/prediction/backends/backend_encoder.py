"""An encoder whose states a backend computes, called as the encoder itself."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fb3.models.layer_stack import longest_input
from fb3.prediction.backends.functional_encoder import FunctionalEncoder, as_output
from fb3.system.progress import say

Run = Callable[[Tensor, Tensor], Sequence[Tensor]]  # input_ids and attention_mask (B, T) to states, float32
_PROBE = (33, 20)  # tokens of its two texts; other shapes than the conversion saw
_WINDOWS = ("local_attention", "sliding_window")  # in a config: what one token sees; the texts are longer


class BackendEncoder(nn.Module):
    """An encoder whose states a backend computes; from its first failure on torch does.

    Args:
        encoder: torch's; its weights may be shared with the backend, so it stays.
        reads: what the pooling reads of it.
        run: the backend.
        name: of the fold, for messages.
    """

    def __init__(self, encoder: nn.Module, reads: str, run: Run, name: str) -> None:
        super().__init__()
        self.encoder, self.reads, self.name = encoder, reads, name
        self.run: Run | None = run

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **arguments: bool) -> object:
        """As the encoder's own, with only what the pooling reads."""
        try:
            if self.run is not None:
                return as_output(self.reads, self.run(input_ids, attention_mask))
        except Exception as error:
            self.run = None
            say(f"{self.name}: {' '.join(repr(error).split())[:300]}; torch goes on, in fp32")
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask, **arguments)

    @torch.no_grad()
    def check(self, tolerance: float) -> None:
        """Compares the states of two made-up texts with torch's: a conversion may keep to the shapes that it saw.

        Raises:
            ValueError: they differ.
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
            if not mine.isfinite().all():  # on padding too: what a pooling weighs with 0 is to be a number
                raise ValueError("its states are not all numbers")
            error = (mine - theirs)[keep.bool()].norm() / theirs[keep.bool()].norm()
            if not error <= tolerance:
                raise ValueError(f"its states differ from torch's by {error:.1%}")
