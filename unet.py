"""The two small base networks, VideoUNet (factorised 2D + 1D) and AudioUNet (2-D), and JointUNet, both made into one.

Each is conditioned on t, shrinks space at once (patches become channels), works at three resolutions with skip
connections, and attends over time at the lowest, where a whole clip is a few dozen positions. They return an estimate
of the clean clip,

    x0_hat = c x_t / alpha_t + (1 - c) body(x_t, t),    c = s^2 / (s^2 + (sigma_t / alpha_t)^2)

the preconditioning of Karras et al. 2022 (2206.00364, eq. 7): where the noise is weaker than s, which is about as
fine as a small network sees, the noisy clip itself is the better guess. Wrapped in FrozenModel(network, sde,
prediction="x0"). You need not read this file to understand the method.

Used by train.py to make the models, and by sample.py and evaluate.py to load them.
"""

from collections.abc import Generator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import AtSteps
from score import VPSDE, TimeFeatures, expand

# s: up to s / 2 of weak noise is kept as grain. At 0.07 that moves onsets, at 0.1 a ringing note has some of its own.
SKIP_VIDEO, SKIP_AUDIO = 0.05, 0.02


class ResBlock(nn.Module):
    """x + conv(SiLU(scale(t) * norm(conv(SiLU(norm(x)))) + shift(t))), with a conv over time in the middle for video.

    x (B T, C, H, W) holds the frames of all clips, channels last in memory; audio is a clip of one frame.
    """

    def __init__(self, channels_in: int, channels: int, embedding: int, temporal: bool):
        super().__init__()
        self.temporal = temporal
        self.norm1, self.norm2 = nn.GroupNorm(8, channels_in), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, (3, 1) if temporal else 3, padding=(1, 0) if temporal else 1)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        clips = len(embedding)
        film = self.film(F.silu(embedding)).repeat_interleave(len(x) // clips, 0)
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift)
        if self.temporal:  # the same memory seen as (B, C, T, H W)
            h = self.conv2(h.unflatten(0, (clips, -1)).transpose(1, 2).flatten(3))
            h = h.transpose(1, 2).unflatten(3, x.shape[2:]).flatten(0, 1)
        else:
            h = self.conv2(h)
        return self.skip(x) + h


class TimeAttention(nn.Module):
    """Self-attention along the clip: one token per time step, made of all the channels and rows at that step."""

    def __init__(self, features: int, steps: int, width: int):
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(steps, width))
        self.into, self.out = nn.Linear(features, width), nn.Linear(width, features)
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, F.silu, batch_first=True, norm_first=True)
        nn.init.zeros_(self.out.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.out(self.layer(self.into(tokens) + self.position))  # tokens (B, steps, features)


class UNet(nn.Module):
    """The body that both share: (B, T, C_in, H, W) -> the same shape, at resolutions 1, 1/2 and 1/4 of H and W."""

    def __init__(
        self, channels_in: int, widths: tuple, bottom: tuple, steps: int, temporal: bool, embedding: int = 128
    ):
        super().__init__()
        a, b, c = widths
        self.time = TimeFeatures(embedding)
        self.into = nn.Conv2d(channels_in, a, 1)
        self.position = nn.Parameter(torch.zeros(a, bottom[0] * 4, bottom[1] * 4))  # bars and pitches have fixed places
        self.down_a, self.down_b = nn.Conv2d(a, b, 2, stride=2), nn.Conv2d(b, c, 2, stride=2)
        self.up_c, self.up_b = nn.ConvTranspose2d(c, b, 2, stride=2), nn.ConvTranspose2d(b, a, 2, stride=2)
        blocks = [(a, a), (b, b), (b, b), (c, c), (c, c), (2 * b, b), (b, b), (2 * a, a), (a, a)]
        self.blocks = nn.ModuleList(ResBlock(i, o, embedding, temporal) for i, o in blocks)
        self.temporal = temporal
        self.attention = TimeAttention(c * bottom[0] * (bottom[1] if temporal else 1), steps, 192)
        self.out = nn.Sequential(nn.GroupNorm(8, a), nn.SiLU(), nn.Conv2d(a, channels_in, 3, padding=1))
        nn.init.zeros_(self.out[2].weight)
        self.to(memory_format=torch.channels_last)  # a batch of video takes a fifth less time on a CPU

    def attend(self, x: Tensor, clips: int) -> Tensor:
        """Video: a token per frame. Audio: a token per column of the spectrogram."""
        if self.temporal:
            return self.attention(x.flatten(1).unflatten(0, (clips, -1))).flatten(0, 1).unflatten(1, x.shape[1:])
        return self.attention(x.flatten(1, 2).transpose(1, 2)).transpose(1, 2).unflatten(1, x.shape[1:3])

    def levels(self, x: Tensor, t: Tensor) -> Generator[Tensor, Tensor, None]:
        """The pass of `forward`, halting after each of five resolutions: yields the features there and goes on with
        those that are sent back, which `JointUNet` mixes with another network's; the sixth yield is the output.
        """
        embedding = self.time(t)
        a0, b0, b1, c0, c1, b2, b3, a1, a2 = self.blocks
        flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        high = yield a0(self.into(flat) + self.position, embedding)
        middle = yield b1(b0(self.down_a(high), embedding), embedding)
        low = c0(self.down_b(middle), embedding)
        low = yield c1(self.attend(low, len(t)), embedding)
        up = yield b3(b2(torch.cat([self.up_c(low), middle], dim=1), embedding), embedding)
        up = yield a2(a1(torch.cat([self.up_b(up), high], dim=1), embedding), embedding)
        yield self.out(up).unflatten(0, x.shape[:2])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        levels = self.levels(x, t)
        h = next(levels)
        for _ in range(5):
            h = levels.send(h)
        return h


def precondition(body_x0: Tensor, xt: Tensor, t: Tensor, sde: VPSDE, s: float) -> Tensor:
    """x0_hat from the body's estimate, as in the equation at the top of the file."""
    alpha, sigma = sde.marginal(t)
    c = s**2 / (s**2 + (sigma / alpha) ** 2)
    return expand(c / alpha, xt) * xt + expand(1 - c, xt) * body_x0.float()


class VideoUNet(nn.Module):
    """xt (B, 3, T, H, W), t (B,) -> x0_hat, the same shape; H = W = size, a multiple of 16, and T = size / 2."""

    def __init__(self, size: int = 32, widths: tuple = (32, 64, 192), patch: int = 4):
        super().__init__()
        self.size, self.patch = size, patch
        bottom = size // patch // 4
        self.body = UNet(3 * patch**2, widths, (bottom, bottom), size // 2, temporal=True)

    def patches(self, xt: Tensor) -> Tensor:
        return F.pixel_unshuffle(xt.transpose(1, 2), self.patch)  # (B, T, 3 p p, H/p, W/p)

    def clean(self, body_x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        body_x0 = F.pixel_shuffle(body_x0, self.patch).transpose(1, 2)
        return precondition(body_x0, xt, t, self.body.time.sde, SKIP_VIDEO)

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        return self.clean(self.body(self.patches(xt), t), xt, t)


class AudioUNet(nn.Module):
    """xt (B, 1, 64, L), t (B,) -> x0_hat, the same shape; L = 4 size, as long as a clip of size / 2 frames."""

    def __init__(self, size: int = 32, widths: tuple = (32, 64, 128), patch: int = 4):
        super().__init__()
        self.size, self.patch = size, patch
        bottom = (64 // patch // 4, 4 * size // patch // 4)
        self.body = UNet(patch**2, widths, bottom, bottom[1], temporal=False)

    def patches(self, xt: Tensor) -> Tensor:
        return F.pixel_unshuffle(xt, self.patch)[:, None]  # (B, 1, p p, n_mels/p, L/p)

    def clean(self, body_x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return precondition(F.pixel_shuffle(body_x0[:, 0], self.patch), xt, t, self.body.time.sde, SKIP_AUDIO)

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        return self.clean(self.body(self.patches(xt), t), xt, t)


class Mixer(nn.Module):
    """Each modality hears of the other at the same instant: h + out(SiLU(own + other)), time step by time step.

    v (B T, C, H, W) and a (B, C', M, L) keep their shapes; a step's own features are all that it holds, C H W or C' M.
    """

    def __init__(self, video_features: int, audio_features: int, width: int, frames: int, columns: int):
        super().__init__()
        self.at_frames, self.at_columns = AtSteps(columns, frames), AtSteps(frames, columns)
        self.from_v, self.from_a = nn.Linear(video_features, width), nn.Linear(audio_features, width)
        self.to_v, self.to_a = nn.Linear(width, video_features), nn.Linear(width, audio_features)
        for parameter in (*self.to_v.parameters(), *self.to_a.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        own_v = self.from_v(v.flatten(1).unflatten(0, (len(a), -1)))  # (B, T, width)
        own_a = self.from_a(a.flatten(1, 2).transpose(1, 2))  # (B, L, width)
        v = v + self.to_v(F.silu(own_v + self.at_frames(own_a))).flatten(0, 1).view(v.shape)
        return v, a + self.to_a(F.silu(own_a + self.at_columns(own_v))).transpose(1, 2).unflatten(1, a.shape[1:3])


class JointUNet(nn.Module):
    """(vt, at), t (B,) -> estimates of both clean modalities: the two networks above in step, mixed at each resolution.

    One diffusion model of the joint distribution, as of MM-Diffusion (Ruan et al. 2023, 2212.09478) but mixed per time
    step instead of by attention in a window: what the guidance is measured against (train.py joint).
    """

    def __init__(self, size: int = 32, width: int = 128):
        super().__init__()
        self.size = size
        self.video, self.audio = VideoUNet(size), AudioUNet(size)
        frames, frame = size // 2, (2 * size**2, size**2, 3 * size**2 // 4)  # features of a frame at each resolution
        high, middle, low = (
            (features, 512, width, frames, size // 2**level)  # 512 of a column of the sound
            for level, features in enumerate(frame)
        )
        self.mixers = nn.ModuleList(Mixer(*shape) for shape in (high, middle, low, middle, high))

    def forward(self, states: tuple[Tensor, Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
        networks = self.video, self.audio
        passes = [net.body.levels(net.patches(x), t) for net, x in zip(networks, states, strict=True)]
        h = [next(levels) for levels in passes]
        for mixer in self.mixers:
            h = [levels.send(x) for levels, x in zip(passes, mixer(*h), strict=True)]
        return tuple(net.clean(x0, x, t) for net, x0, x in zip(networks, h, states, strict=True))
