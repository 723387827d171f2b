"""What one training step minimises: a batch drawn, perturbed and judged, for a base model or for the discriminator.

    base            E |x0_hat(x_t, t) - x_0|^2 / sigma_t^2
    discriminator   discriminator_loss (discriminator.py), cross-entropy alone for the first part of a run: it is
    cheap and
                    finds the pairing; then with the noise loss, which makes the gradient right

Used by train.py.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint
from discriminator import discriminator_loss
from guidance import sample
from score import VPSDE

LEVEL_MEAN, LEVEL_SPREAD = 0.0, 0.9  # of logit t, where the discriminator trains
GROUP = 4  # clips that share a noise level: each is told from the three others
FAKES = 1024  # pairs drawn from the base models for --fakes generated


def levels(n: int, sde: VPSDE, generator: torch.Generator) -> Tensor:
    """n noise levels, one from each of n equal parts of [t_min, 1]: uniform, with less variance than n free draws."""
    u = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return sde.t_min + (1 - sde.t_min) * u


def discriminator_levels(n: int, sde: VPSDE, generator: torch.Generator) -> Tensor:
    """n noise levels for the discriminator, logit-normal: nine in ten between 0.2 and 0.8, where hits are decided.

    Below, the clips are settled; above, there is nothing to tell. Stratified like `levels`.
    """
    u = (levels(n, sde, generator) - sde.t_min) / (1 - sde.t_min)
    return torch.sigmoid(LEVEL_MEAN + LEVEL_SPREAD * torch.special.ndtri(u.double())).float().clamp(sde.t_min, 1)


def base_loss(network: nn.Module, sde: VPSDE, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, dict, Tensor]:
    """E |x0_hat(x_t, t) - x_0|^2 / sigma_t^2, a mean over elements; returns loss, parts per sample and t (B,).

    The weight makes it the error of v = alpha_t eps - sigma_t x_0 (Salimans & Ho 2022, 2202.00512): neither the fine
    detail at small t nor the layout at large t, where it is decided when hits happen, is drowned by the other.
    """
    t = levels(len(x0), sde, generator).to(x0.device)
    eps = torch.randn(x0.shape, generator=generator).to(x0.device)
    with mixed_precision(x0.device):
        x0_hat = network(sde.perturb(x0, t, eps), t)
    error = (x0_hat - x0).square().flatten(1).mean(1) / sde.marginal(t)[1] ** 2
    return error.mean(), {"v_error": error.detach()}, t


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 autocast where the hardware multiplies it: GPUs, and CPUs with AVX-512 BF16 (1.5 times faster there)."""
    fast = device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


class Fast(nn.Module):
    """A frozen network in mixed precision, for training only: its error is far below the base model's own."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        with mixed_precision(xt.device):
            return self.network(xt, t)


def make_loss(
    args: argparse.Namespace, network: nn.Module, world, sde: VPSDE, generator: torch.Generator, bases: tuple
) -> Callable[[float], tuple[Tensor, dict[str, Tensor], Tensor]]:
    """step(progress) -> (loss, parts per sample, t): one batch drawn, perturbed and judged."""
    device = torch.device(args.device)

    def base_step(progress: float):
        video, audio = world.batch(args.batch, generator, only=args.model)
        return base_loss(network, sde, (video if args.model == "video" else audio).to(device), generator)

    def discriminator_step(progress: float):
        real = [x.to(device) for x in world.batch(args.batch, generator)]
        generated = None
        if args.fakes == "generated":
            rows = torch.randint(len(fake_pool[0]), (args.batch,), generator=generator)
            generated = [x[rows].to(device) for x in fake_pool]
        t = discriminator_levels(args.batch // GROUP, sde, generator).repeat_interleave(GROUP).to(device)
        # sigma^2: at small t base models err in every pixel, which says nothing of the pairing and would drown the rest
        noise_weight = args.noise_weight * sde.marginal(t)[1] ** 2 if progress >= args.warmup else 0.0
        loss, parts = discriminator_loss(
            network, *bases, real, t, generator, args.bce_weight, noise_weight, GROUP, generated
        )
        return loss, parts, t

    if args.model != "discriminator":
        return base_step
    fake_pool = generated_fakes(args, world, bases) if args.fakes == "generated" else None
    return discriminator_step


def generated_fakes(args: argparse.Namespace, world, bases: tuple) -> tuple[Tensor, Tensor]:
    """Independent pairs from the base models, drawn once and kept in the run folder for a resumed run."""
    path = args.out / "fakes.pt"
    if not path.exists():
        generator, pool = torch.Generator().manual_seed(args.seed), []
        video, audio = world.batch(1, generator)
        for _ in tqdm(range(FAKES // 32), desc="fakes from the base models"):
            shapes = (32, *video.shape[1:]), (32, *audio.shape[1:])
            pool.append([x.cpu() for x in sample(*bases, None, *shapes, generator=generator, device=args.device)])
        checkpoint.save(path, {"video": torch.cat([p[0] for p in pool]), "audio": torch.cat([p[1] for p in pool])})
    state = checkpoint.load(path)
    return state["video"], state["audio"]
