"""Pairs to learn from: real ones at two noise levels, and how fakes are made of them.

A pair (v_0, a_0) is noised to levels t = (t_v, t_a). Where they are equal, the discriminator learns the joint score;
where one is t_min, that modality is as good as clean and it learns the score of the other given it.

Used by objective.py and toy/run.py to make batches, by discriminator.py for its loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from score import FrozenModel

Levels = Tensor | tuple[Tensor, Tensor]  # (B,), one for both modalities, or (t_v, t_a)


def both(t: Levels) -> tuple[Tensor, Tensor]:
    """(t_v, t_a); a weight that may be one or two in the same way."""
    return t if isinstance(t, tuple) else (t, t)


def joint_and_conditional(
    t: Levels, t_min: float, generator: torch.Generator | None = None, alone: Levels | None = None
) -> tuple[Tensor, Tensor]:
    """(t_v, t_a) to train at, from levels t (N,): t for both in half the cases, t and t_min in a quarter each.

    `alone` (N,) are levels to take beside t_min in place of t: of a clean sound one can tell much of a picture that is
    nearly all noise, of a noisy one nothing.
    """
    n, device = len(both(t)[0]), both(t)[0].device
    order = torch.randperm(n + -n % 4, generator=generator)[:n].to(device)
    levels = zip(both(t), both(t if alone is None else alone), strict=True)
    levels = [torch.where(order % 4 < 2, beside, together) for together, beside in levels]
    return tuple(torch.where(order % 4 == clean, t_min, level) for clean, level in enumerate(levels))


def mirrored_noise(n: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal eps for n clips like those of x (B, ...), of which the second half is minus the first.

    Where the two halves hold the same clips at the same t, what the noise loss cannot explain, 2 r . eps, cancels
    between them to first order at small t, and its gradient has far less variance.
    """
    half = torch.randn((n + 1) // 2, *x.shape[1:], generator=generator, dtype=x.dtype)
    return torch.cat([half, -half])[:n]


def shuffled(x: Tensor, shift: int, group: int) -> Tensor:
    """x (B, ...) with each clip replaced by the one `shift` places on, cyclically, within its `group` of clips."""
    return x.unflatten(0, (-1, group)).roll(-shift, 1).flatten(0, 1)


class Noisy(NamedTuple):
    """Pairs at noise levels t, and what the base models miss of their noise, eps - eps_base (None: not asked).

    A modality at t_min counts as clean: nothing is asked of its base model, and what it misses is written as 0.
    `text` holds what the discriminator is told of the prompts, (B, n) a modality, or nothing.
    """

    vt: Tensor
    at: Tensor
    t: Levels
    missing: tuple[Tensor, Tensor] | None
    text: tuple[Tensor, ...] = ()


def perturb_pairs(
    video_model: FrozenModel,
    audio_model: FrozenModel,
    pairs: tuple[Tensor, Tensor],
    t: Levels,
    generator: torch.Generator | None = None,
    ask_base: bool = True,
    conditions: tuple[tuple[Tensor, ...], ...] = ((), ()),
    text: tuple[Tensor, ...] = (),
    share: tuple[int, slice] | None = None,
) -> Noisy:
    """Clean pairs (video (B, ...), audio (B, ...)) at noise levels t, with what the frozen base models say of them.

    `conditions` are what each base model takes beside x_t and t, tensors (B, ...); `text` is for the discriminator.
    A `share` (n, rows) says that the pairs are these rows of n, whose noise is drawn as one.
    """
    sde = video_model.sde
    n, rows = share or (len(pairs[0]), slice(None))
    eps = [mirrored_noise(n, x, generator)[rows].to(x.device) for x in pairs]
    noisy = [sde.perturb(x, level, e) for x, level, e in zip(pairs, both(t), eps, strict=True)]
    if not ask_base:
        return Noisy(*noisy, t, None, text)
    missing = tuple(torch.zeros_like(e) for e in eps)
    models = (video_model, audio_model)
    for model, xt, level, e, out, told in zip(models, noisy, both(t), eps, missing, conditions, strict=True):
        asked = level > sde.t_min
        if asked.any():
            with torch.no_grad():
                out[asked] = e[asked] - model(xt[asked], level[asked], *(c[asked] for c in told))
    return Noisy(*noisy, t, missing, text)
