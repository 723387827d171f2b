"""The last steps of a sampler as an ascent: the mean of what is estimated from fresh noise at every step.

    x_k = alpha_k m_(k-1) + sigma_k z_k,    m_k = m_(k-1) + 2 / (k + 1) (x0_hat(x_k, t_k) - m_(k-1)),    z_k ~ N(0, I)

m is a clip without noise, at first the x0_hat of the state that a solver has reached at t_1, then a mean of all
estimates in which the k-th weighs k. In expectation over z, with r = sigma / alpha and score s = grad log q_t,

    E x0_hat(alpha m + sigma z) - m = r^2 alpha E s(alpha m + sigma z) = r^2 grad_m E log q_t(alpha m + sigma z)

so m descends KL(N(alpha m, sigma^2 I) || q_t), as in score distillation (Poole et al. 2022, 2209.14988), by a step of
2 r^2 / (k + 1). It does not draw from q but goes towards the nearest mode, seen through noise r. Where only detail is
left to be decided and a clip has one right detail (a ball is on its path or it is not), errors that a solver carries
from step to step are averaged away. Where detail is random, such as grain, none of it is left.

Used by guidance.py, below the noise level that sample.py and evaluate.py name --climb.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from score import VPSDE

LAST = 0.1  # t down to which the noise of the steps falls: below it estimates keep what noise there is


def levels(first: float, steps: int) -> Tensor:
    """t_1 = first > ... > t_steps = LAST, by equal factors (float64); all `first` where that is not above LAST."""
    return torch.logspace(0, 1, steps, base=LAST / max(first, LAST), dtype=torch.float64) * first


def climb(
    eps_model: Callable[[tuple, Tensor], tuple],
    states: tuple[Tensor, ...],
    sde: VPSDE,
    times: Tensor,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """From states (B, ...) at t = times[0], one call of eps_model (guidance.py) a step; yields m after each."""
    mean = None
    for k, time in enumerate(times.tolist(), start=1):
        t = torch.full((len(states[0]),), time, dtype=states[0].dtype, device=states[0].device)
        if mean:
            states = tuple(sde.perturb(m, t, sde.prior(m.shape, generator, m.device, m.dtype)) for m in mean)
        estimates = [sde.eps_to_x0(x, eps, t) for x, eps in zip(states, eps_model(states, t), strict=True)]
        mean = [torch.lerp(m, x0, 2 / (k + 1)) for m, x0 in zip(mean or estimates, estimates, strict=True)]
        yield tuple(mean)
