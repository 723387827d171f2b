"""The joint discriminator and its loss: what the two frozen base models do not know.

D(v_t, a_t, t) tells real pairs from independent ones at every noise level (Hayakawa et al. 2025, 2405.17842). Its logit

    L(v, a, t) = log q_t(v, a) / (p_t(v) p_t(a))                  q: the data, p: the base models
    r_v = -sigma_t dL/dv,   r_a = -sigma_t dL/da                  residual noise: eps_joint = eps_base + r

is trained by cross-entropy and, because a good classifier may have a poor gradient, by denoising with eps_base + r:

    bce   = softplus(-L(real_t)) + softplus(L(fake_t))
    noise = |eps_base_v + r_v - eps_v|^2 + |eps_base_a + r_a - eps_a|^2      minimised by the true joint score
    loss  = bce_weight * bce + noise_weight * noise

The logit has parts by name, L = pair(v, a, t) + repair_v(v, t) + repair_a(a, t). Shuffled fakes have the marginals
of the data, so cross-entropy on them trains `pair` alone, log q(v,a) / (q(v) q(a)). The repairs, log q(v)/p(v) and
log q(a)/p(a), are what the base models got wrong; they learn from the noise loss.

Each modality has a noise level of its own, t = (t_v, t_a). Where they are equal, L turns two base scores into the joint
score; where one of them is t_min, that modality is as good as clean and L gives the score of the other one given it:

    grad_a log q(a_t | v_0) = grad_a log p_t(a_t) + grad_a L(v_0, a_t, (0, t))

Used by guidance.py (the gradient), train.py (the loss) and, with networks of its own, toy/run.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import AtSteps, LongFilter, TemporalBlock, Windows
from pairs import Levels, Noisy, both, shuffled
from score import VPSDE, TimeFeatures

BANDS = 64  # of a waveform's learned filterbank


def residual_noise(logit: Tensor, vt: Tensor, at: Tensor, t: Levels, sde: VPSDE, **graph: bool) -> tuple:
    """r = -sigma_t grad L for both modalities, logits (B,) being of vt and at; graph as of torch.autograd.grad."""
    gradients = torch.autograd.grad(logit.sum(), (vt, at), **graph)
    return tuple(sde.score_to_eps(gradient, level) for gradient, level in zip(gradients, both(t), strict=True))


def discriminator_loss(
    discriminator: nn.Module,
    sde: VPSDE,
    real: Noisy,
    bce_weight: float = 1.0,
    noise_weight: float | tuple[Tensor, Tensor] = 1.0,
    group: int = 2,
    fakes: str = "shuffled",
    generated: Noisy | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and its parts for real pairs from `perturb_pairs`.

    Fakes get the same noise kernel as the real pairs:
        shuffled    each noisy video with the noisy audio of each other clip of its group (`group` consecutive clips,
                    which must share their t), to train `pair`
        generated   pairs drawn independently from the base models, at the t of real, to train the whole logit
    A noise_weight (B,) a modality, a function of its t alone, weighs noise levels without moving the minimum. The noise
    losses are sums over elements: a modality weighs what it has to explain.

    Parts, per sample (B,): bce, noise, noise_base (noise without the residual, what the base models reach alone) and
    correct (mean over real and fake pairs of the share told right).
    """
    t = real.t
    with_noise = isinstance(noise_weight, tuple) or noise_weight > 0
    vt, at = (x.detach().requires_grad_(with_noise) for x in (real.vt, real.at))

    features = discriminator.encode(vt, at, t, *real.text)
    pair, repair = discriminator.pair(*features, t), discriminator.repair(*features)
    if fakes == "generated":
        real_logit, fake_logits = pair + repair, discriminator(generated.vt, generated.at, t, *real.text)[None]
    else:
        others = (shuffled(features[1], k, group) for k in range(1, group))
        real_logit, fake_logits = pair, torch.stack([discriminator.pair(features[0], a, t) for a in others])

    bce = F.softplus(-real_logit) + F.softplus(fake_logits).mean(0)  # fake logits (fakes per real, B)
    parts = {"bce": bce, "correct": ((real_logit > 0).float() + (fake_logits <= 0).float().mean(0)) / 2}
    loss = bce_weight * bce.mean()
    if with_noise:
        residual = residual_noise(pair + repair, vt, at, t, sde, create_graph=True)
        errors = [
            (r - x).square().flatten(1).sum(1) * (level > sde.t_min)
            for r, x, level in zip(residual, real.missing, both(t), strict=True)
        ]
        parts["noise_base"] = sum(x.square().flatten(1).sum(1) for x in real.missing)
        parts["noise"] = sum(errors)
        loss = loss + sum((w * error).mean() for w, error in zip(both(noise_weight), errors, strict=True))
    return loss, {name: value.detach() for name, value in parts.items()}


def wavelets(channels: int, length: int) -> nn.Linear:
    """A bank (2 BANDS, channels * length) to start from: cosine and sine under a Hann window, pitches evenly spaced."""
    pitches = torch.logspace(math.log10(2 / length), math.log10(0.45), BANDS)  # cycles per sample
    angle = 2 * math.pi * pitches[:, None] * torch.arange(length)
    pairs = torch.stack([angle.cos(), angle.sin()], dim=1).flatten(0, 1) * torch.hann_window(length)
    bank = nn.Linear(channels * length, 2 * BANDS)
    bank.weight = nn.Parameter((pairs * 4 / length).repeat(1, channels))
    return bank


class JointDiscriminator(nn.Module):
    """discriminator(video (B, C, T, H, W), audio, t) -> logit (B,); t (B,), or (t_v, t_a).

    Pixels or latents of any number of channels; audio is a spectrogram (B, C, M, L), or a waveform (B, C, samples),
    which first becomes one: a learned bank of BANDS pairs of filters, and the energy of each pair. `text` is the length
    of a prompt's embedding per modality, 0 for none; a network with it takes text_v and text_a (B, n) after t. The
    logit is the pair term plus both repairs, which `repairs` may weigh (guidance.py does where its weight is above 1).

    Both modalities become feature sequences on one time axis, are mixed per time step by concatenation and product,
    then along the whole clip, and only then pooled: dL/dv depends on a. SiLU throughout, for the second derivative.
    The shapes fix how many time steps there are (`at_steps`, `long_filter`).

    What is linear up to n features has a gradient of n directions: too few, were they the `width` of a whole frame, to
    move a ball wherever it is. So a picture's columns, `stride` pixels wide, have features of their own first, `column`
    of each by the same weights, with a block in time.
    """

    def __init__(
        self,
        video_shape: tuple = (3, 16, 32, 32),
        audio_shape: tuple = (1, 64, 128),
        text: tuple[int, int] = (0, 0),
        width: int = 96,
        embedding: int = 24,
        filters: tuple[int, int] = (24, 16),
        column: int = 72,
        fusion: tuple = (1, 2, 4),
    ):
        super().__init__()
        channels, frames, height, width_px = video_shape
        if min(height, width_px) < 2 or len(audio_shape) not in (2, 3):
            raise ValueError(f"no discriminator for video of shape {video_shape} and audio of shape {audio_shape}")
        self.video_shape, self.audio_shape = tuple(video_shape), tuple(audio_shape)
        self.time = nn.Sequential(TimeFeatures(embedding), nn.SiLU())
        self.text = nn.ModuleList(nn.Linear(n, embedding) if n else None for n in text)
        if len(audio_shape) == 2:  # a waveform: eight columns to a video frame
            self.hop = max(1, audio_shape[1] // (8 * frames))
            self.filterbank = wavelets(audio_shape[0], 2 * self.hop)
            audio_shape = (1, BANDS, (audio_shape[1] - 2 * self.hop) // self.hop + 1)
        self.stride = max(1, min(4, min(height, width_px) // 4))  # in space, of windows of twice that
        self.time_stride = max(1, min(4, audio_shape[2] // (2 * frames)))  # two steps to a video frame
        rows, columns = ((n + 2 * (self.stride // 2)) // self.stride - 1 for n in (height, width_px))
        self.video_in = Windows(channels, filters[0], (self.stride, self.stride), (2, 2))
        self.video_column = nn.Linear(filters[0] * rows, column)
        self.column_block = TemporalBlock(column, embedding)
        self.video_frame = nn.Linear(column * columns, width)
        self.audio_in = Windows(audio_shape[0], filters[1], (2, self.time_stride), (4, 2))
        self.audio_step = nn.Linear(filters[1] * (audio_shape[1] // 2), width)
        self.video_blocks = nn.ModuleList(TemporalBlock(width, embedding, d) for d in (1, 2))
        self.audio_blocks = nn.ModuleList(TemporalBlock(width, embedding, d) for d in (1, 2, 4))
        self.factor_v, self.factor_a = nn.Linear(width, width), nn.Linear(width, width)
        self.mix = nn.Linear(3 * width, width)
        steps = (audio_shape[2] - self.time_stride % 2) // self.time_stride
        self.at_steps, self.long_filter = AtSteps(frames, steps), LongFilter(width, steps)
        self.fusion_blocks = nn.ModuleList(TemporalBlock(width, 2 * embedding, d) for d in fusion)
        self.pair_out, self.repair_v, self.repair_a = (
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)) for _ in range(3)
        )

    def encode(self, video: Tensor, audio: Tensor, t: Levels, *text: Tensor) -> tuple[Tensor, Tensor]:
        """Each modality alone: features in time of video (B, T, C) and audio (B, L / time_stride, C).

        From pixels to the features of a time step there is a linear path, a matched filter: where the noise is far
        above the picture, a non-linearity would lose what only the sum of many pixels shows.
        """
        time_v, time_a = self.time(torch.cat(both(t))).chunk(2)
        if any(self.text):
            if not text:
                raise ValueError("this discriminator was trained with prompts: it needs their embeddings")
            time_v, time_a = (
                time + linear(told) if linear else time
                for time, linear, told in zip((time_v, time_a), self.text, text, strict=True)
            )
        if audio.dim() == 3:
            bank = self.filterbank.weight.unflatten(1, (audio.shape[1], -1))
            waves = F.conv1d(audio, bank, self.filterbank.bias, stride=self.hop)
            audio = torch.log1p(waves.unflatten(1, (BANDS, 2)).square().sum(2))[:, None]
        frames = self.video_in(video.transpose(1, 2).flatten(0, 1))
        columns = self.video_column(frames.permute(0, 3, 1, 2).flatten(2))  # (B T, columns, C)
        each = columns.unflatten(0, (len(video), -1)).transpose(1, 2)  # (B, columns, T, C)
        each = self.column_block(each.flatten(0, 1), time_v.repeat_interleave(each.shape[1], 0)).view(each.shape)
        v = self.video_frame(each.transpose(1, 2).flatten(2))
        a = self.audio_step(self.audio_in(audio).flatten(1, 2).transpose(1, 2))  # of (B, filters, M/2, L / time_stride)
        for block in self.video_blocks:
            v = block(v, time_v)
        for block in self.audio_blocks:
            a = block(a, time_a)
        return v, a

    def repair(self, v: Tensor, a: Tensor, weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
        """The weighted sum (B,) of the repairs of two encoded modalities, which never meet in it."""
        return weights[0] * self.repair_v(v).sum((1, 2)) + weights[1] * self.repair_a(a).sum((1, 2))

    def pair(self, v: Tensor, a: Tensor, t: Levels) -> Tensor:
        """The pair term (B,) of two encoded modalities: mixed per time step first, pooled last."""
        embedding = torch.cat(self.time(torch.cat(both(t))).chunk(2), dim=1)
        v = self.at_steps(v)  # one time axis
        joint = self.mix(torch.cat([v, a, self.factor_v(v) * self.factor_a(a)], dim=2))  # (B, steps, C)
        joint = self.long_filter(joint)
        for block in self.fusion_blocks:
            joint = block(joint, embedding)
        return self.pair_out(joint).sum((1, 2))

    def forward(
        self, video: Tensor, audio: Tensor, t: Levels, *text: Tensor, repairs: tuple[float, float] = (1.0, 1.0)
    ) -> Tensor:
        v, a = self.encode(video, audio, t, *text)
        return self.pair(v, a, t) + self.repair(v, a, repairs)
