"""Errors of place: that part of an error of x_0 which shows things somewhere else, or sounds at another time.

To first order what is drawn d too low, or comes d too late, is off by d times the slope of x_0 there. So the error e is
projected on the slopes g of a clip, in windows in which a displacement is one, as Lucas & Kanade (1981) find a motion:

    Q(e) = sum over windows of <e, g>^2 / |g|^2

A ball a tenth of a pixel off its path, an onset a tenth of a column late, are little of |e|^2 and most of Q. A loss
|e|^2 + w Q(e) is quadratic in e, and its minimum stays E[x_0 | x_t], whatever w is, where g is a function of x_t alone:
so the slopes are those of an estimate x0_hat(x_t). With those of x_0 itself the minimum moves, since they are larger or
smaller with the very place that is to be guessed; a discriminator so trained put sounds 10 ms late (docs/results.md).

Used by objective.py for the video model (--motion) and by discriminator.py for both modalities.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 8  # pixels, or columns of a spectrogram, in which a displacement is one
FLOOR = 0.1  # energy of slopes, of a window, below which there is nothing to be displaced


def displacement(error: Tensor, x0_hat: Tensor) -> Tensor:
    """Q per clip (B,), of pictures (B, C, T, H, W) or spectrograms (B, C, M, L); slopes are those of x0_hat.

    Pictures: along H and along W, in windows of WINDOW x WINDOW pixels of a frame. Spectrograms: along time, in windows
    of WINDOW columns and all bands.
    """
    axes, window = ((3, 4), (WINDOW, WINDOW)) if error.dim() == 5 else ((3,), (error.shape[2], WINDOW))
    total = 0.0
    for axis in axes:
        (slope,) = torch.gradient(x0_hat, dim=axis)
        along, energy = (math.prod(window) * F.avg_pool2d((x * slope).sum(1), window) for x in (error, slope))
        total = total + (along.square() / (energy + FLOOR)).flatten(1).sum(1)
    return total
