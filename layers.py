"""Layers of the discriminator, whose gradient guides and, by the gradient of that, trains: both have to be cheap.

    Windows          a linear layer of each window of a picture or a spectrogram
    AtSteps          features x (B, steps, C), each of one instant, at other instants: how modalities share a time axis
    Conv1d           x_t <- sum_k W_k x_{t + k}, a few steps around each
    TemporalBlock    x + linear(SiLU(scale(t) * conv(SiLU(norm(x))) + shift(t))), told the noise level t
    LongFilter       x + filter(SiLU(norm(x))), all steps of a clip

Used by discriminator.py, AtSteps also by unet.py (the joint network).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def blocks(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, rows p, columns q) -> (N, C p q, rows, columns): each block of size (p, q) becomes one place."""
    return x.unflatten(3, (-1, size[1])).unflatten(2, (-1, size[0])).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


class Windows(nn.Linear):
    """A linear layer of all windows of x (N, C, H, W), `stride` apart: (N, channels, about H / stride, W / stride).

    A window is `count` strides high and wide; half of what it has more than one is padding on either side. That is a
    convolution, done here as one of stride 1 over blocks of one stride each: a CPU takes its gradient in a fourth of
    the time. The weight is a matrix, (channels, C * window), which is what Muon wants.
    """

    def __init__(self, channels_in: int, channels: int, stride: tuple[int, int], count: tuple[int, int]):
        super().__init__(channels_in * math.prod(stride) * math.prod(count), channels)
        self.stride, self.window = stride, tuple(s * n for s, n in zip(stride, count, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        sides = []  # of the last axis first, as F.pad has them
        for length, stride, window in list(zip(x.shape[2:], self.stride, self.window, strict=True))[::-1]:
            before = (window - stride) // 2
            sides += [before, before - (length + 2 * before) % stride]
        kernel = self.weight.unflatten(1, (x.shape[1], *self.window))
        return F.conv2d(blocks(F.pad(x, sides), self.stride), blocks(kernel, self.stride), self.bias)


class AtSteps(nn.Module):
    """x (B, steps_in, C) -> (B, steps, C), linearly interpolated between the middles of the steps.

    F.interpolate does the same, but on a GPU by one thread a step of the output, which goes through clips and channels
    one by one, and its gradient adds up in an order that differs from run to run.
    """

    def __init__(self, steps_in: int, steps: int):
        super().__init__()
        shares = F.interpolate(torch.eye(steps_in)[None], steps, mode="linear")[0].T  # (steps, steps_in), rows sum to 1
        self.register_buffer("shares", shares.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shares @ x


class Conv1d(nn.Linear):
    """A convolution over time of x (B, S, C_in), S kept, as one matrix product; a matrix is also what Muon wants."""

    def __init__(self, channels_in: int, channels: int, kernel: int, dilation: int = 1):
        super().__init__(channels_in * kernel, channels)
        self.kernel, self.dilation = kernel, dilation

    def forward(self, x: Tensor) -> Tensor:
        reach = self.dilation * (self.kernel - 1)
        padded = F.pad(x, (0, 0, reach // 2, reach - reach // 2))
        taps = [padded[:, k * self.dilation :][:, : x.shape[1]] for k in range(self.kernel)]
        return super().forward(torch.cat(taps, dim=2))


class TemporalBlock(nn.Module):
    """x + linear(SiLU(scale(t) * conv(SiLU(norm(x))) + shift(t))) along time; x (B, S, C)."""

    def __init__(self, channels: int, embedding: int, dilation: int = 1):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = Conv1d(channels, channels, 3, dilation)
        self.film = nn.Linear(embedding, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, None].chunk(2, dim=2)
        return x + self.out(F.silu(self.conv(F.silu(self.norm(x))) * (1 + scale) + shift))


class LongFilter(nn.Module):
    """x + filter(SiLU(norm(x))), each channel along all of the time by 2 steps - 1 taps of its own; x (B, steps, C).

    What is heard at one step bears on what is seen long before it. The taps, (C, 2 steps - 1), are zero at first.
    """

    def __init__(self, channels: int, steps: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.taps = nn.Parameter(torch.zeros(channels, 2 * steps - 1))
        after = torch.arange(steps) - torch.arange(steps)[:, None]  # (s, t): from step s to step t, t - s
        self.register_buffer("at", after + steps - 1, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        along = F.silu(self.norm(x)).permute(2, 0, 1).contiguous()  # (C, B, steps), else a CPU takes channels singly
        return x + (along @ self.taps[:, self.at]).permute(1, 2, 0)
