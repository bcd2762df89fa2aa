"""Poolings that are small nets over the last layer's tokens."""

import torch
from torch import Tensor, nn

from fb3.models.poolings.pooling import Pooling


class LstmTokensPooling(Pooling):
    """A bidirectional LSTM over the real tokens, then the largest value of each of its 2U units, U = `width`
    (Hochreiter & Schmidhuber 1997)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__(hidden)
        self.width = 2 * width
        self.net = nn.LSTM(hidden, width, batch_first=True, bidirectional=True)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
        out, _ = nn.utils.rnn.pad_packed_sequence(self.net(packed)[0], batch_first=True, padding_value=-torch.inf)
        return out.amax(1)  # (B, 2U)


class CnnPooling(Pooling):
    """Convolutions over the real tokens, then the largest value of each of U = `width` filters, `kernel` tokens wide
    (Kim 2014, arXiv:1408.5882)."""

    def __init__(self, hidden: int, width: int, kernel: int) -> None:
        super().__init__(hidden)
        self.width = width
        self.net = nn.Conv1d(hidden, width, kernel, padding="same")

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        real = mask.bool().unsqueeze(-1)  # (B, T, 1)
        out = torch.relu(self.net(states.masked_fill(~real, 0.0).mT)).mT  # (B, T, U)
        return out.masked_fill(~real, -torch.inf).amax(1)
