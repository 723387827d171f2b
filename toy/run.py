"""The method on two numbers, beside its closed forms.

    python toy/run.py                       a Gaussian pair with correlation 0.8
    python toy/run.py --target mixture      four modes whose marginals say nothing of the pairing
    python toy/run.py --seeds 5             five runs, mean and spread

x and y are two "modalities" with exact base scores. Five systems sample them side by side: base (no guidance) and
discriminators trained with bce, with the noise loss, with both, and with both in the additive form g(x, t) + h(y, t),
which cannot know which x goes with which y. Score error, KL and mutual information are measured against exact values.
SDE, loss and sampler are those of the audio-video model; only the tiny networks live here.
"""

import sys  # isort: skip
from pathlib import Path  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules it shares
import script  # isort: skip, before what takes seconds to import

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.optim import swa_utils
from tqdm import tqdm

from discriminator import discriminator_loss
from guidance import JointEps, sample
from manifest import save_report
from pairs import Levels, Noisy, both, joint_and_conditional, perturb_pairs
from score import VPSDE, FrozenModel, TimeFeatures
from toy import figures as toy_figures
from toy.target import ExactEps, Mixture, conditional, four_modes, gaussian, mutual_information

SYSTEMS = ("base", "bce", "noise", "both", "additive")
LEVELS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
SAMPLES, SAMPLE_STEPS = 100_000, 40
GIVEN = 1.5  # the x for which y is drawn
TRAIN_STEPS, BATCH, LR, GROUP = 2250, 2048, 8e-3, 2


class TinyDiscriminator(nn.Module):
    """logit(x, y, t) for (B, size) modalities; like JointDiscriminator, it fuses features by concatenation and product.

    With `additive` the two encoders meet only in a sum: the ablation g(x, t) + h(y, t).
    """

    def __init__(self, additive: bool = False, size: int = 1, width: int = 32, embedding: int = 32):
        super().__init__()
        self.additive = additive
        self.time = nn.Sequential(TimeFeatures(embedding), nn.SiLU())
        layers = (size, embedding, width)  # inputs of an encoder's three: of x, of time features, of their sum
        self.encoders = nn.ModuleList(nn.ModuleList(nn.Linear(n, width) for n in layers) for _ in "xy")
        fused, heads = (width, 2) if additive else (3 * width, 1)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(fused, width), nn.SiLU(), nn.Linear(width, 1)) for _ in range(heads)
        )

    def encode(self, x: Tensor, y: Tensor, t: Levels) -> tuple[Tensor, ...]:
        inputs = zip(self.encoders, (x, y), map(self.time, both(t)), strict=True)
        return tuple(F.silu(out(F.silu(x_in(z) + t_in(embedding)))) for (x_in, t_in, out), z, embedding in inputs)

    def repair(self, u: Tensor, v: Tensor) -> Tensor:
        """None: the base scores are exact."""
        return u.new_zeros(len(u))

    def pair(self, u: Tensor, v: Tensor, t: Levels) -> Tensor:
        if self.additive:
            return (self.heads[0](u) + self.heads[1](v))[:, 0]
        return self.heads[0](torch.cat([u, v, u * v], dim=1))[:, 0]

    def forward(self, x: Tensor, y: Tensor, t: Levels) -> Tensor:
        return self.pair(*self.encode(x, y, t), t)


def make_target(name: str, rho: float) -> tuple[Mixture, tuple[FrozenModel, FrozenModel]]:
    """The pair's density and its two exact base models."""
    sde = VPSDE()
    target = four_modes(sde) if name == "mixture" else gaussian(rho, sde)
    return target, tuple(FrozenModel(ExactEps(target, axis), sde) for axis in (0, 1))


def start_worker() -> None:
    """One thread, and a progress bar whose lock is no semaphore of the system that Ctrl-C would leave behind."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())


def train_system(system: str, target_name: str, rho: float, seed: int, steps: int = TRAIN_STEPS) -> nn.Module:
    """One of SYSTEMS' discriminators, trained."""
    torch.manual_seed(seed)
    target, bases = make_target(target_name, rho)
    network = TinyDiscriminator(additive=system == "additive")
    weights = float(system != "noise"), float(system != "bce")
    return train(network, bases, lambda *args: target.sample(*args).split(1, dim=1), seed, *weights, steps=steps)


def train(
    network: nn.Module,
    bases: tuple,
    draw_pairs: Callable[[int, torch.Generator], tuple[Tensor, Tensor]],
    seed: int,
    bce_weight: float = 1.0,
    noise_weight: float = 1.0,
    steps: int = TRAIN_STEPS,
    fakes: Callable[[Levels, torch.Generator], Noisy] | None = None,
) -> nn.Module:
    """Train a discriminator with the loss of the audio-video model; returns its averaged weights, frozen.

    `fakes` draws them at the noise levels of the real pairs; by default they are these, shuffled.
    """
    generator, t_min = torch.Generator().manual_seed(seed), bases[0].sde.t_min
    averaged = swa_utils.AveragedModel(network, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.Adam(network.parameters(), lr=LR, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), desc="training", leave=False, mininterval=1):
        x, y = (z.repeat(2, 1) for z in draw_pairs(BATCH // 2, generator))  # twice, for mirrored noise
        levels = t_min + (1 - t_min) * torch.rand(BATCH // (2 * GROUP), generator=generator) ** 2
        levels = joint_and_conditional(levels, t_min, generator)
        t = tuple(level.repeat_interleave(GROUP).repeat(2) for level in levels)
        noisy = perturb_pairs(*bases, (x, y), t, generator, ask_base=noise_weight > 0)
        other = ("generated", fakes(t, generator)) if fakes else ()
        loss, _ = discriminator_loss(network, bases[0].sde, noisy, bce_weight, noise_weight, GROUP, *other)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        averaged.update_parameters(network)
    return averaged.module.requires_grad_(False)


def joint_score(system: nn.Module | None, bases: tuple, z: Tensor, t: Tensor) -> Tensor:
    """The score that guided sampling follows, (B, 2)."""
    eps = JointEps(*bases, system)(z.split(1, dim=1), t)
    return bases[0].sde.eps_to_score(torch.cat(eps, dim=1), t)


def score_errors(system: nn.Module | None, target: Mixture, bases: tuple, n: int = 20_000) -> list[float]:
    """sqrt(E|s_hat - s|^2 / E|s|^2) at each of LEVELS, over draws from the true q_t."""
    generator, errors = torch.Generator().manual_seed(10_000), []
    for level in LEVELS:
        t = torch.full((n,), level)
        z = bases[0].sde.perturb(target.sample(n, generator), t, torch.randn(n, 2, generator=generator))
        exact = target.score(z, t)
        errors.append(((joint_score(system, bases, z, t) - exact).square().sum() / exact.square().sum()).sqrt().item())
    return errors


def kl_gaussian(samples: Tensor, covariance: Tensor) -> float:
    """KL(N(m, S) || N(0, C)), N(m, S) fitted to samples (n, 2)."""
    samples, C = samples.double(), covariance.double()
    fitted = MultivariateNormal(samples.mean(0), samples.T.cov())
    return kl_divergence(fitted, MultivariateNormal(torch.zeros_like(fitted.mean), C)).item()


def kl_histogram(samples: Tensor, target: Mixture, bins: int = 40, reach: float = 2.4) -> float:
    """KL of the samples' histogram against the exact probability of each cell; all outside the grid is one more."""
    counts = torch.histogramdd(samples, bins, [-reach, reach] * 2).hist.flatten()
    p = torch.cat([counts, torch.tensor([len(samples) - counts.sum()])]) / len(samples)
    fine = torch.linspace(-reach, reach, 8 * bins + 1, dtype=torch.float64)
    centres = (fine[1:] + fine[:-1]) / 2
    z = torch.cartesian_prod(centres, centres)
    density = target.log_density(z, torch.zeros(len(z), dtype=torch.float64)).exp() * (fine[1] - fine[0]) ** 2
    cells = density.reshape(bins, 8, bins, 8).sum((1, 3)).flatten()
    q = torch.cat([cells, (1 - cells.sum())[None].clamp(min=1e-12)])
    return torch.where(p > 0, p * (p.clamp(min=1e-12) / q.clamp(min=1e-12)).log(), torch.zeros(())).sum().item()


def draw(system: nn.Module | None, bases: tuple, seed: int, weight: float = 1.0, n: int = SAMPLES) -> Tensor:
    generator = torch.Generator().manual_seed(20_000 + seed)
    return torch.cat(sample(*bases, system, (n, 1), (n, 1), SAMPLE_STEPS, weight, "dpm++2m", generator), dim=1)


def draw_given(system: nn.Module, bases: tuple, seed: int, given_at: str) -> Tensor:
    """y (SAMPLES, 1) given x = GIVEN, in the two ways of JointEps."""
    x, generator = torch.full((SAMPLES, 1), GIVEN), torch.Generator().manual_seed(40_000 + seed)
    given = {"given_video": x, "given_at": given_at}
    return sample(*bases, system, x.shape, x.shape, SAMPLE_STEPS, 1.0, "dpm++2m", generator, **given)[1]


def run(args: argparse.Namespace, seed: int, out: Path | None) -> dict:
    """One seed: train the systems, measure them, draw the figures where `out` is given."""
    start, mixture = time.time(), args.target == "mixture"
    target, bases = make_target(args.target, args.rho)
    # two systems at a time, one core each: tensors this small gain nothing from a second core
    with ProcessPoolExecutor(2, get_context("spawn"), start_worker) as pool:
        jobs = {name: pool.submit(train_system, name, args.target, args.rho, seed) for name in SYSTEMS[1:]}
        systems = {"base": None} | {name: job.result() for name, job in jobs.items()}
        jobs = {name: pool.submit(draw, systems[name], bases, seed) for name in SYSTEMS}
        overshoot = pool.submit(draw, systems["both"], bases, seed, 2.0).result()
        samples = {name: job.result() for name, job in jobs.items()}
        jobs = {at: pool.submit(draw_given, systems["both"], bases, seed, at) for at in ("clean", "noised")}
        given = {at: job.result() for at, job in jobs.items()}
    errors = {name: score_errors(systems[name], target, bases) for name in SYSTEMS}
    kl = (lambda s: kl_histogram(s, target)) if mixture else (lambda s: kl_gaussian(s, target.covariances[0]))
    x, y = target.sample(SAMPLES, torch.Generator().manual_seed(30_000 + seed)).split(1, dim=1)
    with torch.no_grad():
        estimate = systems["both"](x, y, torch.full((SAMPLES,), bases[0].sde.t_min)).mean().item()
    exact = mutual_information(target, None if mixture else args.rho)
    report = {
        "rho": None if mixture else args.rho,
        "score_error": {name: sum(e) / len(e) for name, e in errors.items()},
        "kl": {name: kl(s) for name, s in samples.items()},
        "rho_hat": {name: s.T.corrcoef()[0, 1].item() for name, s in samples.items()},
        "mutual_information": {"estimate": estimate, "exact": exact},
        "weights": {},
    }
    for weight, s in ((0.0, samples["base"]), (1.0, samples["both"]), (2.0, overshoot)):
        report["weights"][str(weight)] = {"rho_hat": s.T.corrcoef()[0, 1].item(), "variance": s.var(0).mean().item()}
    moments = {"exact": conditional(target, GIVEN)}
    moments |= {at: (y.mean().item(), y.var().item()) for at, y in given.items()}
    report["conditional"] = {at: dict(zip(("mean", "variance"), pair, strict=True)) for at, pair in moments.items()}
    report["seconds"] = time.time() - start
    if out:
        toy_figures.draw_all(out, target, bases, systems, samples, errors, LEVELS, joint_score)
    return report


def over_seeds(reports: list, statistic: Callable[[list[float]], float | str]) -> dict:
    """One report in the form of each, every number in it a statistic over seeds."""
    if isinstance(reports[0], dict):
        return {key: over_seeds([r[key] for r in reports], statistic) for key in reports[0]}
    return None if reports[0] is None else statistic(reports)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=("gaussian", "mixture"), default="gaussian", help="default %(default)s")
    parser.add_argument("--rho", type=float, default=0.8, help="correlation of the Gaussian (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="repeat with this many seeds (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default %(default)s)")
    parser.add_argument("--device", choices=("cpu",), default="cpu", help="the toy is too small for a GPU")
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="folder (default %(default)s)")
    args = script.parse_options(parser, argv)
    if not -1 < args.rho < 1 or args.seeds < 1:
        parser.error("--rho must lie between -1 and 1, and --seeds be at least 1")
    reports = [run(args, args.seed + k, args.out if k == 0 else None) for k in range(args.seeds)]
    report = over_seeds(reports, statistics.fmean)
    if args.seeds > 1:
        report |= {"seeds": args.seeds, "spread": over_seeds(reports, statistics.stdev)}
    if args.target == "mixture":
        report["kl_by"] = "histogram of 40 x 40 cells"
    save_report(args, report)

    def cell(values: list[float]) -> str:
        return f"{statistics.fmean(values):9.4f}" + (f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else "")

    cells = over_seeds(reports, cell)
    print(f"{'system':10} score_error, kl, rho_hat")
    for name in SYSTEMS:
        print(f"{name:10} " + "  ".join(cells[key][name] for key in ("score_error", "kl", "rho_hat")))
    for weight, row in cells["weights"].items():
        print(f"both, weight {weight}: rho_hat {row['rho_hat']}, variance {row['variance']}")
    for at, row in cells["conditional"].items():
        print(f"y given x = {GIVEN}, {at:6}: mean {row['mean']}, variance {row['variance']}")
    information = cells["mutual_information"]
    print(f"mutual information {information['estimate']} nats, exact {information['exact']}")
    print(f"{report['seconds']:.0f} s a seed; scores.png, samples.png, errors.png and report.json are in {args.out}")
    print("next: python sample.py --weight 1 3, the same on clips")


if __name__ == "__main__":
    script.run_main(main)
