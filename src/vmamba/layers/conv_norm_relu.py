"""`ConvNormReLU`, what heads for dense prediction are made of."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNormReLU(nn.Module):
    """Convolution, batch norm, ReLU: (B, in, H, W) → (B, out, H, W).

    Args:
        in_channels: Channels.
        out_channels: Channels of the result.
        kernel_size: Odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.batch_norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.batch_norm(self.conv(x)))
