"""Mutual information of Gaussian pairs in 1 to 64 dimensions, read off a discriminator in two ways, and exactly.

    python toy/information.py               about 8 minutes; information.png and report.json in runs/information

x and y (B, d), correlated by rho in each dimension, have I(x; y) = -d/2 log(1 - rho^2). One discriminator a dimension
is trained as in toy/run.py, and asked on pairs it has not seen:

    logit       the mean of L on real pairs at t_min
    gradient    what its residual explains of the noise, integrated over t (information.py): at most the exact value
"""

import sys  # isort: skip
from pathlib import Path  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules it shares
import script  # isort: skip, before what takes seconds to import

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor, nn

import figures
from information import mutual_information
from manifest import save_report
from score import VPSDE, FrozenModel, expand
from toy import target
from toy.run import TinyDiscriminator, start_worker, train

DIMENSIONS = (1, 2, 4, 8, 16, 32, 64)
PAIRS, DRAWS = 20_000, 4


class StandardNormalEps(nn.Module):
    """The exact base network of N(0, I), which stays one at every t: eps = -sigma_t score = sigma_t x_t."""

    def __init__(self, sde: VPSDE):
        super().__init__()
        self.sde = sde

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        return expand(self.sde.marginal(t)[1], xt) * xt


def draw_pairs(n: int, generator: torch.Generator, size: int, rho: float) -> tuple[Tensor, Tensor]:
    """x, y (n, size), each N(0, I)."""
    x, z = (torch.randn(n, size, generator=generator) for _ in range(2))
    return x, rho * x + (1 - rho**2) ** 0.5 * z


def estimate(size: int, rho: float, seed: int, steps: int) -> dict[str, float]:
    """Both estimates in `size` dimensions, their standard errors over PAIRS pairs, and the exact value."""
    torch.manual_seed(seed)
    sde = VPSDE()
    base = FrozenModel(StandardNormalEps(sde), sde)
    network = TinyDiscriminator(size=size, width=max(32, 2 * size))
    network = train(network, (base, base), lambda n, generator: draw_pairs(n, generator, size, rho), seed, steps=steps)
    pairs = draw_pairs(PAIRS, torch.Generator().manual_seed(30_000 + seed), size, rho)
    with torch.no_grad():
        logit = network(*pairs, torch.full((PAIRS,), sde.t_min))
    gradient, error = mutual_information((base, base, network), pairs, (sde.t_min, 1.0), seed, draws=DRAWS)
    row = {
        "dimensions": size,
        "exact": size * target.mutual_information(target.gaussian(rho, sde), rho),
        "logit": logit.mean().item(),
    }
    return row | {"logit_error": (logit.std() / PAIRS**0.5).item(), "gradient": gradient, "gradient_error": error}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rho", type=float, default=0.8, help="correlation in each dimension (default %(default)s)")
    parser.add_argument("--steps", type=int, default=2250, help="of training (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/information"))
    args = script.parse_options(parser, argv)
    if not -1 < args.rho < 1 or args.steps < 1:
        parser.error("--rho must lie between -1 and 1, and --steps be at least 1")
    start = time.time()
    with ProcessPoolExecutor(2, get_context("spawn"), start_worker) as pool:
        jobs = [pool.submit(estimate, size, args.rho, args.seed, args.steps) for size in DIMENSIONS[::-1]]
        rows = [job.result() for job in jobs][::-1]
    save_report(args, {"rho": args.rho, "seconds": time.time() - start, "rows": rows})
    lines = {name: [row[name] for row in rows] for name in ("exact", "logit", "gradient")}
    axes = ("dimensions of x and of y", "mutual information, nats")
    figures.save_figure(args.out / "information.png", figures.draw_lines(DIMENSIONS, lines, *axes, yscale="log"))
    print(f"{'dimensions':>10} {'exact':>8} {'logit':>16} {'gradient':>16}")
    for row in rows:
        cells = " ".join(f"{row[name]:8.3f} +- {row[name + '_error']:.3f}" for name in ("logit", "gradient"))
        print(f"{row['dimensions']:10} {row['exact']:8.3f} {cells}")
    print(f"{time.time() - start:.0f} s; report.json and information.png are in {args.out}")


if __name__ == "__main__":
    script.run_main(main)
