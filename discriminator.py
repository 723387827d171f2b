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

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score import VPSDE, FrozenModel, TimeFeatures

Levels = Tensor | tuple[Tensor, Tensor]  # (B,), one for both modalities, or (t_v, t_a)


def both(t: Levels) -> tuple[Tensor, Tensor]:
    """(t_v, t_a); a weight that may be one or two in the same way."""
    return t if isinstance(t, tuple) else (t, t)


def joint_and_conditional(t: Tensor, t_min: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """(t_v, t_a) to train at, from levels t (N,): t for both in half the cases, t and t_min in a quarter each."""
    order = torch.randperm(len(t) + -len(t) % 4, generator=generator)[: len(t)].to(t.device)
    return tuple(torch.where(order % 4 == clean, t_min, t) for clean in (0, 1))


def residual_noise(logit: Tensor, vt: Tensor, at: Tensor, t: Levels, sde: VPSDE, **graph: bool) -> tuple:
    """r = -sigma_t grad L for both modalities, logits (B,) being of vt and at; graph as of torch.autograd.grad."""
    gradients = torch.autograd.grad(logit.sum(), (vt, at), **graph)
    return tuple(sde.score_to_eps(gradient, level) for gradient, level in zip(gradients, both(t), strict=True))


def mirrored_noise(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal eps for x (B, ...), of which the second half of the batch is minus the first.

    Where the two halves hold the same clips at the same t, what the noise loss cannot explain, 2 r . eps, cancels
    between them to first order at small t, and its gradient has far less variance.
    """
    half = torch.randn((len(x) + 1) // 2, *x.shape[1:], generator=generator, dtype=x.dtype)
    return torch.cat([half, -half])[: len(x)].to(x.device)


def shuffled(x: Tensor, shift: int, group: int) -> Tensor:
    """x (B, ...) with each clip replaced by the one `shift` places on, cyclically, within its `group` of clips."""
    return x.unflatten(0, (-1, group)).roll(-shift, 1).flatten(0, 1)


class Noisy(NamedTuple):
    """Pairs at noise levels t, and what the base models miss of their noise, eps - eps_base (None: not asked).

    A modality at t_min counts as clean: nothing is asked of its base model, and what it misses is written as 0.
    """

    vt: Tensor
    at: Tensor
    t: Levels
    missing: tuple[Tensor, Tensor] | None


def perturb_pairs(
    video_model: FrozenModel,
    audio_model: FrozenModel,
    pairs: tuple[Tensor, Tensor],
    t: Levels,
    generator: torch.Generator | None = None,
    ask_base: bool = True,
) -> Noisy:
    """Clean pairs (video (B, ...), audio (B, ...)) at noise levels t, with what the frozen base models say of them."""
    sde = video_model.sde
    eps = [mirrored_noise(x, generator) for x in pairs]
    noisy = [sde.perturb(x, level, e) for x, level, e in zip(pairs, both(t), eps, strict=True)]
    if not ask_base:
        return Noisy(*noisy, t, None)
    missing = tuple(torch.zeros_like(e) for e in eps)
    for model, xt, level, e, out in zip((video_model, audio_model), noisy, both(t), eps, missing, strict=True):
        asked = level > sde.t_min
        if asked.any():
            with torch.no_grad():
                out[asked] = e[asked] - model(xt[asked], level[asked])
    return Noisy(*noisy, t, missing)


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

    features = discriminator.encode(vt, at, t)
    pair, repair = discriminator.pair(*features, t), discriminator.repair(*features)
    if fakes == "generated":
        real_logit, fake_logits = pair + repair, discriminator(generated.vt, generated.at, t)[None]
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


class JointDiscriminator(nn.Module):
    """discriminator(video (B, 3, T, H, W), audio (B, 1, n_mels, L), t) -> logit (B,); t (B,), or (t_v, t_a).

    Both modalities become feature sequences on one time axis, are mixed per time step by concatenation and product
    before any pooling, and only then pooled: dL/dv depends on a. SiLU throughout, for the second derivative.
    """

    def __init__(
        self,
        size: int = 32,
        n_mels: int = 64,
        width: int = 96,
        embedding: int = 32,
        filters: int = 16,
        fusion: tuple = (1, 2, 4),
    ):
        super().__init__()
        self.size = size
        self.time = nn.Sequential(TimeFeatures(embedding), nn.SiLU())
        self.video_in, self.video_frame = nn.Linear(3 * 8 * 8, filters), nn.Linear(filters * (size // 4) ** 2, width)
        self.audio_in, self.audio_step = nn.Linear(8 * 8, filters), nn.Linear(filters * (n_mels // 2), width)
        self.video_blocks = nn.ModuleList(TemporalBlock(width, embedding, d) for d in (1, 2))
        self.audio_blocks = nn.ModuleList(TemporalBlock(width, embedding, d) for d in (1, 2, 4))
        self.factor_v, self.factor_a = nn.Linear(width, width), nn.Linear(width, width)
        self.mix = nn.Linear(3 * width, width)
        self.fusion_blocks = nn.ModuleList(TemporalBlock(width, 2 * embedding, d) for d in fusion)
        self.pair_out, self.repair_v, self.repair_a = (
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)) for _ in range(3)
        )

    def encode(self, video: Tensor, audio: Tensor, t: Levels) -> tuple[Tensor, Tensor]:
        """Each modality alone: features in time of video (B, T, C) and audio (B, L/4, C).

        From pixels to the features of a time step everything is linear, a matched filter: where the noise is far above
        the picture, a non-linearity would lose what only the sum of many pixels shows.
        """
        time_v, time_a = map(self.time, both(t))
        kernel_v, kernel_a = (x.weight.unflatten(1, (-1, 8, 8)) for x in (self.video_in, self.audio_in))
        frames = F.conv2d(video.transpose(1, 2).flatten(0, 1), kernel_v, self.video_in.bias, stride=4, padding=2)
        v = self.video_frame(frames.flatten(1)).unflatten(0, (len(video), -1))
        bands = F.conv2d(audio, kernel_a, self.audio_in.bias, stride=(2, 4), padding=(3, 2))  # (B, filters, M/2, L/4)
        a = self.audio_step(bands.flatten(1, 2).transpose(1, 2))
        for block in self.video_blocks:
            v = block(v, time_v)
        for block in self.audio_blocks:
            a = block(a, time_a)
        return v, a

    def repair(self, v: Tensor, a: Tensor) -> Tensor:
        """The sum (B,) of the repairs of two encoded modalities, which never meet in it."""
        return self.repair_v(v).sum((1, 2)) + self.repair_a(a).sum((1, 2))

    def pair(self, v: Tensor, a: Tensor, t: Levels) -> Tensor:
        """The pair term (B,) of two encoded modalities: mixed per time step first, pooled last."""
        embedding = torch.cat([self.time(level) for level in both(t)], dim=1)
        v = F.interpolate(v.transpose(1, 2), a.shape[1], mode="linear").transpose(1, 2)  # one time axis
        joint = self.mix(torch.cat([v, a, self.factor_v(v) * self.factor_a(a)], dim=2))  # (B, L/4, C)
        for block in self.fusion_blocks:
            joint = block(joint, embedding)
        return self.pair_out(joint).sum((1, 2))

    def forward(self, video: Tensor, audio: Tensor, t: Levels) -> Tensor:
        v, a = self.encode(video, audio, t)
        return self.pair(v, a, t) + self.repair(v, a)
