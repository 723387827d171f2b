"""What a discriminator knows, in numbers: by noise level, and as the mutual information of sound and picture.

Along the diffusion the mutual information I_t of v_t and a_t falls at the rate (de Bruijn's identity for the pair
q_t(v, a) against p_t(v) p_t(a), both carried by one SDE)

    dI/dt = -beta_t / 2 E|grad L|^2 = -beta_t / (2 sigma_t^2) E|r|^2

and E|r|^2 is how much of the noise r explains, E[|m|^2 - |m - r|^2] with m = eps - eps_base what the base models miss:
the best r reaches it and any other stays below. So with exact base models

    I >= integral over t of beta_t / (2 sigma_t^2) E[|m|^2 - |m - r|^2]        equal for the true r

where the mean of L on real pairs, the other way to read I off a discriminator, may come out too large or too small.

Used by evaluate.py, benchmarks/levers.py and toy/information.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from discriminator import residual_noise
from pairs import perturb_pairs

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
MODALITIES, BATCH = ("video", "audio"), 64


def calibration_error(real: Tensor, fake: Tensor, bins: int = 10) -> float:
    """Expected calibration error of D = sigmoid(logit): in each tenth of D, |mean D - share of real|, by its share."""
    d, label = torch.sigmoid(torch.cat([real, fake])), torch.cat([torch.ones_like(real), torch.zeros_like(fake)])
    gaps = torch.zeros(bins).to(d).index_add(0, (bins * d).long().clamp(max=bins - 1), d - label)
    return (gaps.abs().sum() / len(d)).item()


def by_level(models: tuple, real: tuple[Tensor, Tensor], seed: int, device: str) -> list[dict[str, float]]:
    """Per noise level, on real pairs: accuracy, calibration, mean logits, and what the residual explains."""
    video_model, audio_model, discriminator = models
    rows, generator = [], torch.Generator().manual_seed(seed)
    for level in tqdm(LEVELS, desc="noise levels"):
        totals = {}
        for pairs in zip(*(x.to(device).split(BATCH) for x in real), strict=True):
            t = torch.full((len(pairs[0]),), level, device=device)
            noisy = perturb_pairs(video_model, audio_model, pairs, t, generator)
            vt, at = noisy.vt.requires_grad_(), noisy.at.requires_grad_()
            v, a = discriminator.encode(vt, at, t)
            pair = discriminator.pair(v, a, t)
            residual = residual_noise(pair + discriminator.repair(v, a), vt, at, t, video_model.sde)
            with torch.no_grad():
                shuffled = discriminator.pair(v, a.roll(1, 0), t)
            row = {"accuracy": ((pair > 0).float() + (shuffled <= 0).float()) / 2, "pair_real": pair}
            row |= {"pair_shuffled": shuffled, "bce": F.softplus(-pair) + F.softplus(shuffled)}
            for name, m, r in zip(MODALITIES, noisy.missing, residual, strict=True):
                products = {"mm": m * m, "mr": m * r, "rr": r * r}
                row |= {f"{name}_{key}": value.flatten(1).sum(1) for key, value in products.items()}
            for key, value in row.items():
                totals.setdefault(key, []).append(value.detach())
        totals = {key: torch.cat(value) for key, value in totals.items()}
        out = {"t": level, **{key: value.mean().item() for key, value in totals.items()}}
        out["calibration_error"] = calibration_error(totals["pair_real"], totals["pair_shuffled"])
        for name in MODALITIES:
            mm, mr, rr = (out.pop(f"{name}_{key}") for key in ("mm", "mr", "rr"))
            out |= {f"{name}_noise_base": mm, f"{name}_noise": mm - 2 * mr + rr}
            out |= {f"{name}_explained": (2 * mr - rr) / mm, f"{name}_cosine": mr / math.sqrt(mm * rr + 1e-30)}
        rows.append(out)
    return rows


def mutual_information(
    models: tuple,
    real: tuple[Tensor, Tensor],
    levels: tuple[float, float],
    seed: int,
    device: str = "cpu",
    draws: int = 4,
) -> tuple[float, float]:
    """I_t at t = levels[0], in nats, from the gradient of `pair` on real pairs, and its standard error over clips.

    The integral ends at levels[1], above which I_t is to be next to nothing (left out, it makes the bound a little
    lower). t is stratified in log t, where the integrand is nearly even; what the repairs explain counts as the base
    models'.
    """
    video_model, audio_model, discriminator = models
    sde, generator, values = video_model.sde, torch.Generator().manual_seed(seed), []
    span = math.log(levels[1] / levels[0])
    for pairs in tqdm(list(zip(*(x.split(BATCH) for x in real), strict=True)), "mutual information"):
        pairs = [x.to(device) for x in pairs]
        clips = torch.zeros(len(pairs[0])).to(pairs[0])
        for _ in range(draws):
            order = torch.randperm(len(clips), generator=generator)
            u = (order + torch.rand(len(clips), generator=generator)) / len(clips)
            t = (levels[1] * torch.exp(-span * u)).to(clips)
            noisy = perturb_pairs(video_model, audio_model, pairs, t, generator)
            vt, at = noisy.vt.requires_grad_(), noisy.at.requires_grad_()
            features = discriminator.encode(vt, at, t)
            pair = discriminator.pair(*features, t)
            r_pair = residual_noise(pair, vt, at, t, sde, retain_graph=True)
            r_all = residual_noise(pair + discriminator.repair(*features), vt, at, t, sde)
            left = [m - r for m, r in zip(noisy.missing, r_all, strict=True)]
            explained = sum(
                ((x + r).square() - x.square()).flatten(1).sum(1) for x, r in zip(left, r_pair, strict=True)
            )
            clips += span * t * sde.beta(t) / (2 * sde.marginal(t)[1] ** 2) * explained / draws
        values.append(clips)
    values = torch.cat(values)
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()
