"""Guided sampling: two frozen base models become one joint model through the gradient of the discriminator.

    eps_joint = eps_base + w * r,   r = -sigma_t grad L(v_t, a_t, t)          (Hayakawa et al. 2025, 2405.17842)

`JointEps` is that line; the solvers below see only a function (states, t) -> eps per state. Weight 1 is the joint,
weight 0 the base models, bit for bit. Where a learned discriminator knows too little, a larger weight makes up for it
and trades diversity for alignment: that of the pair term, for what repairs one modality counts at most once.

Used by sample.py, evaluate.py, train.py (previews) and toy/run.py.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from climb import climb, levels
from discriminator import JointDiscriminator, residual_noise
from pairs import Levels, both
from score import VPSDE, FrozenModel

SETTLED = 0.6  # down to this t it is decided how many hits a clip has and when
ALONE = 0.5  # down to this t a picture goes its own way, and the sound follows it
SHARP = 0.15  # below this t fresh noise leaves more than it mends
FINE = 0.1  # below this t nearly all is decided
CLIMB = 0.3  # below this t a clip of the Xylophone has one right detail (climb.py)
SOLVERS = {  # order; tau, the amount of fresh noise, for t > SETTLED, for t > SHARP and for the rest
    "ddim": (1, 0, 0, 0),
    "dpm++2m": (2, 0, 0, 0),
    "ddpm": (1, 1, 1, 1),
    "dpm++2m-sde": (2, 1, 1, 1),
    "dpm++2m-churn": (2, 1, 3, 0),
}
States = tuple[Tensor, ...]
Weight = float | tuple[float, float]


def by_noise_level(*weights: float, given: bool = False) -> Callable[[float], tuple[float, float]]:
    """t -> weights (video, audio): one for all t; or one for t > SETTLED and one below.

    Of two the picture has none while t > ALONE: more than 1 makes too many hits there, what a learned discriminator
    says of a picture is mostly its own error (docs/results.md), and the sound follows. That is no longer the joint, but
    by an exact discriminator and weight 1 nearly so: on the Gaussian pair of toy/ the correlation stays at 0.80.

    Where one modality is `given` whole, its hits are settled from the start: the second weight holds from t = 1. A
    third is for t <= FINE: with 0 there the discriminator need not be asked in the last quarter of a solver's steps.
    """
    early, late, last = (*weights, weights[-1], weights[-1])[:3]

    def weight(t: float) -> tuple[float, float]:
        t = round(t, 6)  # it comes in float32, where 0.1 is more than FINE
        sound = early if t > SETTLED and not given else late if t > FINE else last
        picture = 0.0 if len(weights) > 1 and t > ALONE and not given else sound
        return picture, sound

    return weight


class JointEps:
    """(states (v_t, a_t), t (B,) all equal) -> (eps_v, eps_a): one base call a modality, one gradient of the logit.

    t may be (t_v, t_a), for models that are paired at two different noise levels. `weight` is a number, a pair
    (video, audio), or a function of t (of t_v) that gives either.

    Where `given` holds a clean modality instead of None, the mask `keep` (broadcast to it) is True where it is known;
    there x0 is no estimate, eps = (x_t - alpha_t x0) / sigma_t, and each step of the solver noises it anew. A modality
    known as a whole (its mask None) is not asked of its base model. Drawing a given v then takes the score of
    q(a_t | v_0), which is grad_a log p_t(a_t) + grad_a L with v clean in L; the discriminator sees v `given_at`

        clean     t_min: exact, as the joint is, for a discriminator trained at such pairs of levels (train.py's are)
        noised    t, the noise drawn anew at each call: the score of q(a_t | v_t), and v_t tells less than v_0. These
                  q are no marginals of one diffusion from q(a | v): what a_t misses at large t it does not catch up

    On the Gaussian pair of toy/ `noised` moves y by 0.43 of what x calls for (docs/guide.md). A part that is
    kept is seen by both networks at t, too, and pulls the rest with as little force.
    """

    def __init__(
        self,
        video_model: FrozenModel,
        audio_model: FrozenModel,
        discriminator: nn.Module | None,
        weight: Weight | Callable[[float], Weight] = 1.0,
        given: tuple[Tensor | None, Tensor | None] = (None, None),
        keep: tuple[Tensor | None, Tensor | None] = (None, None),
        given_at: str = "clean",
        generator: torch.Generator | None = None,
    ):
        if given_at not in ("clean", "noised"):
            raise ValueError(f"given_at must be clean or noised, not {given_at!r}")
        self.models, self.discriminator, self.sde = (video_model, audio_model), discriminator, video_model.sde
        self.weight = weight if callable(weight) else lambda t: weight
        self.given, self.keep, self.given_at, self.generator = given, keep, given_at, generator
        self.whole = [x is not None and mask is None for x, mask in zip(given, keep, strict=True)]

    def __call__(self, states: States, t: Levels) -> States:
        times, levels = both(t), list(both(t))
        for k, known in enumerate(self.given):
            if self.whole[k]:
                if self.given_at == "clean":
                    levels[k] = torch.full_like(times[k], self.sde.t_min)
                noise = self.sde.prior(known.shape, self.generator, known.device, known.dtype)
                states = (*states[:k], self.sde.perturb(known, levels[k], noise), *states[k + 1 :])
        with torch.no_grad():
            base = [
                torch.zeros_like(x) if whole else model(x, level)
                for model, x, level, whole in zip(self.models, states, times, self.whole, strict=True)
            ]
        eps = self.guided(states, base, times, tuple(levels) if any(self.whole) else t)
        return tuple(
            e if mask is None else torch.where(mask, self.sde.x0_to_eps(x, known, level), e)
            for x, e, known, mask, level in zip(states, eps, self.given, self.keep, times, strict=True)
        )

    def guided(self, states: States, base: list[Tensor], times: tuple[Tensor, Tensor], levels: Levels) -> States:
        """eps_base + w r; repairs enter L by 1 / w where w > 1, and so count once."""
        weights = both(self.weight(times[0][0].item()))
        if self.discriminator is None or not any(weights):
            return tuple(base)
        with torch.enable_grad():
            vt, at = (x.detach().requires_grad_() for x in states)
            repaired = isinstance(self.discriminator, JointDiscriminator)
            once = {"repairs": tuple(1 / max(w, 1) for w in weights)} if repaired else {}
            residual = residual_noise(self.discriminator(vt, at, levels, **once), vt, at, levels, self.sde)
        return tuple(eps + w * r for eps, w, r in zip(base, weights, residual, strict=True))


def time_grid(steps: int, sde: VPSDE, climb_below: float = 0.0) -> Tensor:
    """t_0 = 1 > ... > t_steps = t_min (float64): a solver's levels, uniform in sqrt(t), then those that climb.

    On the Gaussian pair of toy/, at 25 steps of dpm++2m, the covariance is off by 0.006 on this grid, by 0.12 on one
    uniform in t and by 0.017 on one uniform in log-SNR (tests/test_guidance.py).

    With a climb the solver ends at climb_below, after as many steps as a grid uniform in t would take to it: most of
    them go where it is decided what a clip shows (docs/trials.md).
    """
    solved = max(1, round((1 - climb_below) * steps))
    end = climb_below if solved < steps else sde.t_min
    solver = torch.linspace(1, end**0.5, solved + 1, dtype=torch.float64) ** 2
    return torch.cat([solver[:-1], levels(climb_below, steps - solved), solver.new_tensor([sde.t_min])])


def denoise(
    eps_model: Callable[[States, Levels], States],
    states: States,
    sde: VPSDE,
    steps: int,
    solver: str = "dpm++2m-churn",
    generator: torch.Generator | None = None,
    grid: Tensor | tuple[Tensor, Tensor] | None = None,
    climb_below: float = 0.0,
) -> Iterator[States]:
    """Carry states from t = 1 to t_min, one call of eps_model a step; yields the states after each step.

    With lambda = log alpha/sigma, h = lambda_s - lambda_t and z ~ N(0, I) every solver is the exact step for a constant
    x0 (Lu et al. 2022, 2211.01095, alg. 2 for tau = 0; their SDE-DPM-Solver++ for tau = 1):

        x_s = sigma_s/sigma_t e^(-tau h) x_t + alpha_s (1 - e^(-(1 + tau) h)) x0 + sigma_s (1 - e^(-2 tau h))^(1/2) z

    ddim (Song et al. 2021, 2010.02502, eq. 12): order 1, tau = 0      dpm++2m: order 2, tau = 0
    ddpm, the ancestral step (Ho et al. 2020, 2006.11239, eq. 6, 7): order 1, tau = 1      dpm++2m-sde: order 2, tau = 1
    dpm++2m-churn: order 2, tau = 3 for SHARP < t <= SETTLED, 1 above, 0 below

    Order 1 takes x0 = (x_t - sigma_t eps) / alpha_t, order 2 extrapolates it from the last step to the middle of this.
    Any tau >= 0, also one that changes with t, has the same marginals where eps is exact (Xue et al. 2023, 2309.05019:
    this is their tau squared). Where eps is learned, fresh noise lets a step mend what those before it got wrong.

    `grid` (steps + 1,) replaces `time_grid`; two of them give each of two states its own noise levels. A grid may end
    at t = 0, where h is infinite and the step returns x0.

    Steps that start at t = climb_below or below it are those of climb.py instead; not with two grids.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, not {solver!r}")
    if climb_below and isinstance(grid, tuple):
        raise ValueError("climb_below goes with one time grid, not with two")
    order, *taus = SOLVERS[solver]
    grid = time_grid(steps, sde, climb_below) if grid is None else grid
    grids = grid if isinstance(grid, tuple) else (grid,) * len(states)
    climbing = grids[0][:-1][grids[0][:-1] <= climb_below]
    last = [None] * len(states)  # x0 and h of the step before
    for i in range(steps - len(climbing)):
        t = tuple(times[i].to(x).expand(len(x)) for x, times in zip(states, grids, strict=True))
        eps, moved = eps_model(states, t if isinstance(grid, tuple) else t[0]), []
        for k, (x, e, times) in enumerate(zip(states, eps, grids, strict=True)):
            (alpha, alpha_s), (sigma, sigma_s) = (pair.tolist() for pair in sde.marginal(times[i : i + 2]))
            start, end = (0.5 * sde.log_snr(times[i : i + 2])).tolist()
            h, x0 = end - start, (x - sigma * e) / alpha
            tau = taus[int(times[i] <= SETTLED) + int(times[i] <= SHARP)]
            ratio = h / (2 * last[k][1]) if order == 2 and last[k] and math.isfinite(h) else 0.0
            ahead = (1 + ratio) * x0 - ratio * last[k][0] if ratio else x0
            kept = sigma_s / sigma * (math.exp(-tau * h) if tau else 1.0)
            x = kept * x - alpha_s * math.expm1(-(1 + tau) * h) * ahead
            if tau:
                fresh = sigma_s * math.sqrt(-math.expm1(-2 * tau * h))
                x = x + fresh * sde.prior(x.shape, generator, x.device, x.dtype)
            last[k] = x0, h
            moved.append(x)
        states = tuple(moved)
        yield states
    yield from climb(eps_model, states, sde, climbing, generator)


def draw(
    eps_model: Callable[[States, Levels], States],
    shapes: tuple,
    sde: VPSDE,
    steps: int = 25,
    solver: str = "dpm++2m-churn",
    generator: torch.Generator | None = None,
    device: str = "cpu",
    grid: Tensor | tuple[Tensor, Tensor] | None = None,
    climb_below: float = 0.0,
) -> States:
    """One state of each shape (B, ...), carried from noise to t_min."""
    states = tuple(sde.prior(shape, generator, device) for shape in shapes)
    *_, states = denoise(eps_model, states, sde, steps, solver, generator, grid, climb_below)
    return states


def unguided_eps(network: Callable[[States, Tensor], States], sde: VPSDE) -> Callable[[States, Tensor], States]:
    """eps of a network that estimates all clean states at once, such as JointUNet: sampled like the guided pair."""

    @torch.no_grad()
    def eps(states: States, t: Tensor) -> States:
        return tuple(sde.x0_to_eps(x, x0, t) for x, x0 in zip(states, network(states, t), strict=True))

    return eps


def sample(
    video_model: FrozenModel,
    audio_model: FrozenModel,
    discriminator: nn.Module | None,
    video_shape: tuple,
    audio_shape: tuple,
    steps: int = 25,
    weight: Weight | Callable[[float], Weight] = 1.0,
    solver: str = "dpm++2m-churn",
    generator: torch.Generator | None = None,
    given_video: Tensor | None = None,
    given_audio: Tensor | None = None,
    keep: tuple[Tensor | None, Tensor | None] = (None, None),
    given_at: str = "clean",
    device: str = "cpu",
    grid: Tensor | tuple[Tensor, Tensor] | None = None,
    climb_below: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Draw (video, audio) of the given shapes (B, ...); what is given, as far as `keep` goes, is returned as it came.

    Fresh noise forgets the errors of a learned discriminator, and the second order takes few steps well: on the
    Gaussian pair of toy/, at 25 steps, the covariance is off by 0.006, with dpm++2m-sde by 0.035, with ddpm by 0.20.
    Guided and unguided runs from equal seeds start from the same noise and can be compared clip by clip.
    """
    sde = video_model.sde
    given = (given_video, given_audio)
    eps_model = JointEps(video_model, audio_model, discriminator, weight, given, keep, given_at, generator)
    states = draw(eps_model, (video_shape, audio_shape), sde, steps, solver, generator, device, grid, climb_below)
    return tuple(
        x if known is None else known if mask is None else torch.where(mask, known, x)
        for x, known, mask in zip(states, given, keep, strict=True)
    )
