"""Prompts: classifier-free guidance of the frozen base models, and of the residual that joins them.

    eps = eps_null + s (eps_text - eps_null)          (Ho & Salimans 2022, 2207.12598), null: the empty prompt
    r   = r_null   + s (r_text   - r_null)            r = -sigma_t grad L, the discriminator told of the prompt, or not

A condition is what a base model takes beside x_t and t: a tuple of tensors (B, ...), an embedding first.

Used by sample.py and latents.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from score import FrozenModel


class Prompted(NamedTuple):
    """What two base models and a discriminator of prompts become for given prompts; called like those without."""

    video_model: nn.Module
    audio_model: nn.Module
    discriminator: Callable


def bind(models: tuple, discriminator: nn.Module, told: tuple, scales: tuple[float, float]) -> Prompted:
    """`told` holds a modality's conditions (text, null), ((), ()) for one without; `scales` is s of video and audio."""
    bound = (ClassifierFree(model, *pair, s) for model, pair, s in zip(models, told, scales, strict=True))
    text, null = (tuple(map(pooled, conditions)) for conditions in zip(*told, strict=True))
    return Prompted(*bound, classifier_free_logit(discriminator, text, null, scales))


def pooled(condition: tuple[Tensor, ...]) -> Tensor:
    """What the discriminator is told of a prompt, (B, n): the embedding, or the mean of its tokens; else nothing."""
    if not condition:
        return torch.zeros(0)
    return (condition[0].mean(1) if condition[0].dim() == 3 else condition[0]).float()


class ClassifierFree(nn.Module):
    """A FrozenModel bound to prompts: model(x_t, t) -> eps_null + s (eps_text - eps_null); at s = 1 eps_text alone."""

    def __init__(self, model: FrozenModel, text: tuple[Tensor, ...], null: tuple[Tensor, ...], scale: float):
        super().__init__()
        self.model, self.sde, self.text, self.scale = model, model.sde, text, scale
        self.both = [torch.cat(pair) for pair in zip(null, text, strict=True)]

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        if self.scale == 1:
            return self.model(xt, t, *self.text)
        null, text = self.model(torch.cat([xt, xt]), torch.cat([t, t]), *self.both).chunk(2)
        return null + self.scale * (text - null)


def classifier_free_logit(discriminator: nn.Module, text: tuple, null: tuple, scales: tuple[float, float]) -> Callable:
    """A logit(v, a, t) whose gradient in each modality is that of L_null + s (L_text - L_null), with the modality's s.

    x -> s x + (1 - s) stop(x) leaves a value as it is and multiplies its gradient by s.
    """

    def scaled(x: Tensor, s: float) -> Tensor:
        return s * x + (1 - s) * x.detach()

    def logit(v: Tensor, a: Tensor, t) -> Tensor:
        if scales == (1, 1):
            return discriminator(v, a, t, *text)
        parts = zip((text, null), (scales, [1 - s for s in scales]), strict=True)
        return sum(discriminator(scaled(v, s[0]), scaled(a, s[1]), t, *told) for told, s in parts)

    return logit
