"""The joint discriminator and its loss: what the two frozen base models do not know.

D(v_t, a_t, t) tells real pairs from independent ones at every noise level (Hayakawa et al. 2025, 2405.17842). Its logit

    L(v, a, t) = log q_t(v, a) / (p_t(v) p_t(a))                  q: the data, p: the base models
    r_v = -sigma_t dL/dv,   r_a = -sigma_t dL/da                  residual noise: eps_joint = eps_base + r

is trained by cross-entropy and, because a good classifier may have a poor gradient, by denoising with eps_base + r:

    bce   = softplus(-L(real_t)) + softplus(L(fake_t))
    noise = |eps_base_v + r_v - eps_v|^2 + |eps_base_a + r_a - eps_a|^2      minimised by the true joint score
    loss  = bce_weight * bce + noise_weight * noise

The logit has two parts by name, L = pair(v, a, t) + repair_v(v, t) + repair_a(a, t). Shuffled fakes have the
marginals of the data, so cross-entropy on them trains `pair` alone, log q(v,a) / (q(v) q(a)); the noise loss trains
the sum, in which the repairs log q(v)/p(v) and log q(a)/p(a) mend what the base models got wrong.

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

    Where the two halves hold the same clips at the same t, what the noise loss cannot explain, 2 r . eps, cancels
    between them to first order at small t, and its gradient has far less variance.
    """
    half = torch.randn((len(x) + 1) // 2, *x.shape[1:], generator=generator, dtype=x.dtype)
    return torch.cat([half, -half])[: len(x)].to(x.device)


def shuffled(x: Tensor, shift: int, group: int) -> Tensor:
    """x (B, ...) with each clip replaced by the one `shift` places on, cyclically, within its `group` of clips."""
    return x.unflatten(0, (-1, group)).roll(-shift, 1).flatten(0, 1)


def discriminator_loss(
    discriminator: nn.Module,
    video_model: FrozenModel,
    audio_model: FrozenModel,
    real: tuple[Tensor, Tensor],
    t: Tensor,
    generator: torch.Generator | None = None,
    bce_weight: float = 1.0,
    noise_weight: float | Tensor = 1.0,
    group: int = 2,
    generated: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and its parts for clean real pairs (video (B, ...), audio (B, ...)) at noise levels t (B,).

    Fakes are either shuffled or generated, and get the same noise kernel as the real pairs. Shuffled: each noisy
    video with the noisy audio of each of the other clips of its group (`group` consecutive clips, which must share
    their t); they cost no further encoding, and cross-entropy on them trains `pair`. `generated`: pairs drawn
    independently from the base models, of the same shapes as real; cross-entropy on them trains the whole logit. A
    noise_weight (B,) weighs noise levels against each other; being a function of t alone, it does not move the
    minimum. The noise losses are sums over a modality's elements, so they weigh a modality by how much there is to
    explain in it.

    Parts, per sample (B,): bce, noise, noise_base (the noise loss without the residual, what the base models reach
    alone) and correct (the mean over real and fake of the share told right).
    """
    sde = video_model.sde
    eps = [mirrored_noise(x, generator) for x in real]
    noise_weight = torch.as_tensor(noise_weight, dtype=t.dtype, device=t.device)
    with_noise = bool((noise_weight > 0).any())
    vt, at = (sde.perturb(x, t, e).requires_grad_(with_noise) for x, e in zip(real, eps, strict=True))

    feature_v, feature_a, repair = discriminator.encode(vt, at, t)
    pair = discriminator.pair(feature_v, feature_a, t)
    if generated is None:
        real_logit = pair
        others = [shuffled(feature_a, k, group) for k in range(1, group)]
        fake_logits = [discriminator.pair(feature_v, other, t) for other in others]
    else:
        real_logit = pair + repair
        fake_logits = [discriminator(*(sde.perturb(x, t, mirrored_noise(x, generator)) for x in generated), t)]
    fake_logits = torch.stack(fake_logits)  # (fakes per real, B)

    bce = F.softplus(-real_logit) + F.softplus(fake_logits).mean(0)
    correct = ((real_logit > 0).float() + (fake_logits <= 0).float().mean(0)) / 2
    parts = {"bce": bce, "correct": correct}
    loss = bce_weight * bce.mean()
    if with_noise:
        with torch.no_grad():
            base = video_model(vt, t), audio_model(at, t)
        residual = residual_noise(pair + repair, vt, at, t, sde, create_graph=True)
        left = [e - b for e, b in zip(eps, base, strict=True)]  # what the base models miss
        parts["noise_base"] = sum(x.flatten(1).square().sum(1) for x in left)
        parts["noise"] = sum((x - r).flatten(1).square().sum(1) for x, r in zip(left, residual, strict=True))
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
        self.pair_out, self.repair_v, self.repair_a = (
            nn.Sequential(nn.Conv1d(width, width, 1), nn.SiLU(), nn.Conv1d(width, 1, 1)) for _ in range(3)
        )

    def encode(self, video: Tensor, audio: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each modality alone: features of video (B, C, T) and audio (B, C, L/4) in time, and the sum of the repairs
        (B,).
        """
        embedding = self.time(t)
        frames = F.pixel_unshuffle(video.transpose(1, 2), 4)  # (B, T, 48, H/4, W/4)
        b, steps = frames.shape[:2]
        v = self.video_frame(self.video_in(frames.flatten(0, 1)).flatten(1)).unflatten(0, (b, steps)).transpose(1, 2)
        a = self.audio_in(audio[:, 0])  # (B, C, L/4)
        for block in self.video_blocks:
            v = block(v, embedding)
        for block in self.audio_blocks:
            a = block(a, embedding)
        return v, a, self.repair_v(v).sum((1, 2)) + self.repair_a(a).sum((1, 2))

    def pair(self, v: Tensor, a: Tensor, t: Tensor) -> Tensor:
        """The pair term (B,) of two encoded modalities: mixed per time step first, pooled last."""
        embedding = self.time(t)
        v = F.interpolate(v, a.shape[2], mode="linear")  # one time axis
        joint = self.mix(torch.cat([v, a, self.factor_v(v) * self.factor_a(a)], dim=1))  # (B, C, L/4)
        for block in self.fusion_blocks:
            joint = block(joint, embedding)
        return self.pair_out(joint).sum((1, 2))

    def forward(self, video: Tensor, audio: Tensor, t: Tensor) -> Tensor:
        v, a, repair = self.encode(video, audio, t)
        return self.pair(v, a, t) + repair
