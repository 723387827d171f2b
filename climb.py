"""The last steps of a sampler as an ascent: the mean of what is estimated from fresh noise at every step.

    x_k = alpha_k m_(k-1) + sigma_k z_k,    m_k = m_(k-1) + 2 / (k + 1) (x0_hat(x_k, t_k) - m_(k-1)),    z_k ~ N(0, I)

m is a clip without noise, at first the x0_hat of the state that a solver has reached at t_1, then a mean of all
estimates in which the k-th weighs k. In expectation over z, with r = sigma / alpha and score s = grad log q_t,

    E x0_hat(alpha m + sigma z) - m = r^2 alpha E s(alpha m + sigma z) = r^2 grad_m E log q_t(alpha m + sigma z)

so m descends KL(N(alpha m, sigma^2 I) || q_t), as in score distillation (Poole et al. 2022, 2209.14988), by a step of
2 r^2 / (k + 1). It does not draw from q but goes towards the nearest mode, seen through noise r. Where only detail is
left to be decided and a clip has one right detail (a ball is on its path or it is not), errors that a solver carries
from step to step are averaged away. Where detail is random, such as grain, none of it is left.

The last AGAIN steps look at this m, each through fresh noise too weak to hide anything, and the mean is returned of

    x0_hat(alpha m + sigma z_j, WEAK),    z_j ~ N(0, I),    j = 1 ... AGAIN

For m is not quite a clip: a discriminator moves a hit along its gradient, a straight line, where clips lie on a curve,
and an attack seen through noise is a mean of attacks, none of them as sharp. At weak noise a base model knows an attack
or a ball as it is. None of them looks at what another one gave: errors would add up.

Used by guidance.py, below the noise level that sample.py and evaluate.py name --climb.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from score import VPSDE

LAST = 0.1  # t down to which the noise of the steps falls: below it estimates keep what noise there is
AGAIN, WEAK = 2, 0.03  # steps at the end, and their t


def levels(first: float, steps: int) -> Tensor:
    """t_1 = first > ... > LAST, by equal factors, then AGAIN times WEAK: (steps,) float64.

    `first` takes the place of what would be above it.
    """
    falling = torch.logspace(0, 1, falls(steps), base=LAST / max(first, LAST), dtype=torch.float64) * first
    return torch.cat([falling, torch.full((steps - len(falling),), min(WEAK, first), dtype=torch.float64)])


def falls(steps: int) -> int:
    """How many of the steps come before the last AGAIN; all, where there are no more than those."""
    return steps - AGAIN if steps > AGAIN else steps


def climb(
    eps_model: Callable[[tuple, Tensor], tuple],
    states: tuple[Tensor, ...],
    sde: VPSDE,
    times: Tensor,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """From states (B, ...) at t = times[0], the first of `levels`, one call of eps_model (guidance.py) a step; yields
    the mean after each.
    """
    first, m, mean = falls(len(times)), None, None
    for i, time in enumerate(times.tolist()):
        share = 2 / (i + 2) if i < first else 1 / (i - first + 1)  # the first of either kind is all of the mean
        t = torch.full((len(states[0]),), time, dtype=states[0].dtype, device=states[0].device)
        if i:
            states = tuple(sde.perturb(x, t, sde.prior(x.shape, generator, x.device, x.dtype)) for x in m)
        estimates = [sde.eps_to_x0(x, eps, t) for x, eps in zip(states, eps_model(states, t), strict=True)]
        mean = [torch.lerp(x, x0, share) for x, x0 in zip(mean or estimates, estimates, strict=True)]
        m = mean if i < first else m
        yield tuple(mean)
