"""The joint discriminator and its loss: what the two frozen base models do not know.

D(v_t, a_t, t) tells real pairs from independent ones at every noise level (Hayakawa et al. 2025, eq. 6). Its logit

    L(v, a, t) = log q_t(v, a) / (p_t(v) p_t(a))                  q: the data, p: the base models
    r_v = -sigma_t dL/dv,   r_a = -sigma_t dL/da                  residual noise: eps_joint = eps_base + r

is trained by cross-entropy and, because a good classifier may have a poor gradient, by denoising with eps_base + r:

    bce   = softplus(-L(real_t)) + softplus(L(fake_t))
    noise = |eps_base_v + r_v - eps_v|^2 + |eps_base_a + r_a - eps_a|^2      minimised by the true joint score
    loss  = bce_weight * bce + noise_weight * noise

The logit has two parts by name, L = pair(v, a, t) + repair_v(v, t) + repair_a(a, t). Shuffled fakes have the marginals of
the data, so cross-entropy on them trains `pair` alone, log q(v,a) / (q(v) q(a)); the noise loss trains the sum, in which
the repairs log q(v)/p(v) and log q(a)/p(a) mend what the base models got wrong.

Used by guidance.py (the gradient), train.py (the loss) and, with networks of its own, toy/run.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score import VPSDE, FrozenModel, TimeFeatures


def residual_noise(logit: Tensor, vt: Tensor, at: Tensor, t: Tensor, sde: VPSDE, create_graph: bool = False) -> tuple:
    """r = -sigma_t grad L for both modalities, from logits (B,) computed on vt and at, which must require grad."""
    grad_v, grad_a = torch.autograd.grad(logit.sum(), (vt, at), create_graph=create_graph)
    return sde.score_to_eps(grad_v, t), sde.score_to_eps(grad_a, t)


def mirrored_noise(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal eps for x (B, ...), of which the second half of the batch is minus the first.

    Where the two halves hold the same clips at the same t, what the noise loss cannot explain, 2 r . eps, cancels between
    them to first order at small t, and its gradient has far less variance.
    """
    half = torch.randn((len(x) + 1) // 2, *x.shape[1:], generator=generator, dtype=x.dtype)
    return torch.cat([half, -half])[: len(x)].to(x.device)


def discriminator_loss(
    discriminator: nn.Module,
    video_model: FrozenModel,
    audio_model: FrozenModel,
    real: tuple[Tensor, Tensor],
    fake: tuple[Tensor, Tensor],
    t: Tensor,
    generator: torch.Generator | None = None,
    bce_weight: float = 1.0,
    noise_weight: float | Tensor = 1.0,
    fakes: str = "shuffled",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and its parts for clean pairs real and fake, each (video (B, ...), audio (B, ...)), at noise levels t (B,).

    `fakes` says where the fake pairs come from: "shuffled" real ones (cross-entropy on `pair`) or "generated" by the base
    models (cross-entropy on the whole logit). A noise_weight (B,) weighs noise levels against each other; being a function of
    t alone, it does not move the minimum. Parts, per sample (B,): bce, noise, noise_base (the noise loss without the
    residual, what the base models reach alone) and correct (share of real and fake told apart).
    The noise of the second half of the batch mirrors the first (see `mirrored_noise`).
    The noise losses are sums over a modality's elements, so they weigh a modality by how much there is to explain in it.
    """
    sde = video_model.sde
    eps = [mirrored_noise(x, generator) for x in (*real, *fake)]
    vt, at, fake_vt, fake_at = (sde.perturb(x, t, e) for x, e in zip((*real, *fake), eps, strict=True))
    noise_weight = torch.as_tensor(noise_weight, dtype=t.dtype, device=t.device)
    with_noise = bool((noise_weight > 0).any())
    vt, at = vt.requires_grad_(with_noise), at.requires_grad_(with_noise)

    def part(logits: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return logits[0] if fakes == "shuffled" else sum(logits)

    logits = discriminator.parts(vt, at, t)
    real_logit, fake_logit = part(logits), part(discriminator.parts(fake_vt, fake_at, t))
    bce = F.softplus(-real_logit) + F.softplus(fake_logit)
    correct = ((real_logit > 0).float() + (fake_logit <= 0).float()) / 2
    parts = {"bce": bce, "correct": correct}
    loss = bce_weight * bce.mean()
    if with_noise:
        with torch.no_grad():
            base = video_model(vt, t), audio_model(at, t)
        residual = residual_noise(sum(logits), vt, at, t, sde, create_graph=True)
        error = [(b + r - e).flatten(1).square().sum(1) for b, r, e in zip(base, residual, eps, strict=False)]
        error_base = [(b - e).flatten(1).square().sum(1) for b, e in zip(base, eps, strict=False)]
        parts["noise"], parts["noise_base"] = error[0] + error[1], error_base[0] + error_base[1]
        loss = loss + (noise_weight * parts["noise"]).mean()
    return loss, {name: value.detach() for name, value in parts.items()}


class TemporalBlock(nn.Module):
    """x + conv(SiLU(scale(t) * conv(SiLU(norm(x))) + shift(t))) along time; x (B, C, S)."""

    def __init__(self, channels: int, embedding: int, dilation: int = 1):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.film = nn.Linear(embedding, 2 * channels)
        self.conv2 = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[..., None].chunk(2, dim=1)
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x))) * (1 + scale) + shift))


class JointDiscriminator(nn.Module):
    """discriminator(video (B, 3, T, H, W), audio (B, 1, n_mels, L), t (B,)) -> logit (B,).

    Both modalities become feature sequences on one time axis, are mixed per time step by concatenation and product
    before any pooling, and only then pooled: dL/dv depends on a. SiLU throughout, for the second derivative.
    """

    def __init__(self, size: int = 32, n_mels: int = 64, width: int = 96, embedding: int = 64):
        super().__init__()
        self.time = nn.Sequential(TimeFeatures(embedding), nn.SiLU())
        self.video_in = nn.Sequential(
            nn.Conv2d(48, 32, 1), nn.SiLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.SiLU()
        )
        self.video_frame = nn.Linear(32 * (size // 8) ** 2, width)
        self.audio_in = nn.Conv1d(n_mels, width, 8, stride=4, padding=2)
        self.video_blocks = nn.ModuleList(TemporalBlock(width, embedding, d) for d in (1, 2))
        self.audio_blocks = nn.ModuleList(TemporalBlock(width, embedding, d) for d in (1, 2, 4))
        self.factor_v, self.factor_a = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)
        self.mix = nn.Conv1d(3 * width, width, 1)
        self.fusion_blocks = nn.ModuleList(TemporalBlock(width, embedding, d) for d in (1, 2, 4))
        self.pair, self.repair_v, self.repair_a = (
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)) for _ in range(3)
        )

    def parts(self, video: Tensor, audio: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pair, repair_v, repair_a, each (B,); the logit is their sum."""
        embedding = self.time(t)
        frames = F.pixel_unshuffle(video.transpose(1, 2), 4)  # (B, T, 48, H/4, W/4)
        b, steps = frames.shape[:2]
        v = self.video_frame(self.video_in(frames.flatten(0, 1)).flatten(1)).unflatten(0, (b, steps)).transpose(1, 2)
        a = self.audio_in(audio[:, 0])  # (B, C, L/4)
        for block in self.video_blocks:
            v = block(v, embedding)
        for block in self.audio_blocks:
            a = block(a, embedding)
        repair_v, repair_a = self.repair_v(v.mean(2)), self.repair_a(a.mean(2))
        v = F.interpolate(v, a.shape[2], mode="linear")  # one time axis
        joint = self.mix(torch.cat([v, a, self.factor_v(v) * self.factor_a(a)], dim=1))  # (B, C, L/4)
        for block in self.fusion_blocks:
            joint = block(joint, embedding)
        return self.pair(joint.mean(2))[:, 0], repair_v[:, 0], repair_a[:, 0]

    def forward(self, video: Tensor, audio: Tensor, t: Tensor) -> Tensor:
        return sum(self.parts(video, audio, t))
