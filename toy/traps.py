"""Five ways to get the method wrong, each on two numbers, where what is right is known.

    additive    a discriminator of the form g(x, t) + h(y, t): its gradient in x does not know y
    bce         cross-entropy alone: as good a classifier, a poorer gradient
    kernel      fakes noised in another way than the real pairs: told from them by the noise
    weight      guidance weights above 1: too much correlation, then too much of everything
    accuracy    a discriminator that has seen 200 pairs classifies nearly as well as one that sees new ones

Used by docs/figures.py, which draws them for the README.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor, nn

from figures import plt
from pairs import Levels, Noisy, perturb_pairs
from score import VPSDE, FrozenModel, expand
from toy.figures import REACH, score_fields, show_density
from toy.run import LEVELS, TinyDiscriminator, draw, joint_score, make_target, score_errors, start_worker, train
from toy.target import Mixture

STEPS, RHO, FEW, SHOWN = 1000, 0.8, 200, 20_000
WEIGHTS = (0.0, 1.0, 1.5, 2.0, 3.0)
TRAINED = ("both", "additive", "kernel", "few", "mixture bce", "mixture both")


class OtherKernel(VPSDE):
    def perturb(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = x_0 + sigma_t eps: the noise of the real pairs, without their alpha."""
        return x0 + expand(self.marginal(t)[1], x0) * eps


def other_kernel(target: Mixture, t: Levels, generator: torch.Generator) -> Noisy:
    """Fakes, x and y of different pairs, that are noised by another kernel."""
    models = (FrozenModel(nn.Identity(), OtherKernel()),) * 2
    x, y = target.sample(len(t[0]), generator).split(1, dim=1)
    return perturb_pairs(*models, (x, y.roll(1, 0)), t, generator, ask_base=False)


def train_trap(name: str, steps: int = STEPS) -> nn.Module:
    """One of TRAINED."""
    torch.manual_seed(0)
    target, bases = make_target("mixture" if "mixture" in name else "gaussian", RHO)
    seen = target.sample(FEW, torch.Generator().manual_seed(50_000))

    def draw_pairs(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z = seen[torch.randint(FEW, (n,), generator=generator)] if name == "few" else target.sample(n, generator)
        return z.split(1, dim=1)

    noise_weight = 0.0 if name in ("kernel", "mixture bce") else 1.0
    fakes = (lambda *args: other_kernel(target, *args)) if name == "kernel" else None
    network = TinyDiscriminator(additive=name == "additive")
    return train(network, bases, draw_pairs, 0, noise_weight=noise_weight, steps=steps, fakes=fakes)


def accuracies(logit, target: Mixture, n: int = SHOWN) -> list[float]:
    """The share of real and shuffled pairs that a logit (z (n, 2), t) -> (n,) tells right, at each of LEVELS."""
    generator, shares = torch.Generator().manual_seed(60_000), []
    for level in LEVELS:
        t = torch.full((n,), level)
        real = target.sde.perturb(target.sample(n, generator), t, torch.randn(n, 2, generator=generator))
        fake = torch.stack([real[:, 0], real[:, 1].roll(1, 0)], dim=1)
        shares.append(((logit(real, t) > 0).float().mean() + (logit(fake, t) <= 0).float().mean()).item() / 2)
    return shares


def measure(steps: int = STEPS) -> dict:
    """All that the five pictures show: samples (n, 2), score errors and accuracies by noise level."""
    with ProcessPoolExecutor(2, get_context("spawn"), start_worker) as pool:
        jobs = {name: pool.submit(train_trap, name, steps) for name in TRAINED}
        nets = {name: job.result() for name, job in jobs.items()}
        target, bases = make_target("gaussian", RHO)
        jobs = {name: pool.submit(draw, nets[name], bases, 0, n=SHOWN) for name in ("both", "additive", "kernel")}
        jobs |= {weight: pool.submit(draw, nets["both"], bases, 0, weight, SHOWN) for weight in WEIGHTS}
        samples = {name: job.result() for name, job in jobs.items()}
    found = {"networks": nets, "samples": samples, "errors": {}, "accuracy": {}}
    for kind, names in (("gaussian", (None, "few", "both")), ("mixture", (None, "mixture bce", "mixture both"))):
        target, bases = make_target(kind, RHO)
        found["errors"] |= {name or kind: score_errors(nets.get(name), target, bases) for name in names}
        for name in names[1:]:
            with torch.no_grad():
                found["accuracy"][name] = accuracies(lambda z, t, net=nets[name]: net(*z.split(1, 1), t), target)
        found["accuracy"][kind] = accuracies(target.log_ratio, target)
    return found


def clouds(samples: dict[str, Tensor]) -> plt.Figure:
    """2,000 samples of each over the true density."""
    target = make_target("gaussian", RHO)[0]
    figure, axes = plt.subplots(1, len(samples), figsize=(1.7 * len(samples), 2.3), sharex=True, sharey=True)
    for axis, (name, points) in zip(axes, samples.items(), strict=True):
        show_density(axis, target, 0.0)
        axis.scatter(*points[:2000].T.numpy(), s=1, c="tab:orange", alpha=0.5)
        axis.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal")
        axis.set_title(name, fontsize=9)
    return figure


def lines(axis: plt.Axes, curves: dict[str, list[float]], title: str, yscale: str = "linear") -> None:
    for (name, values), style in zip(curves.items(), ("k:", "o-", "s-"), strict=True):
        axis.plot(LEVELS, values, style, label=name, markersize=4)
    axis.set(xlabel="t", yscale=yscale)
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def by_level(found: dict, base: str, names: dict[str, str]) -> plt.Figure:
    """Accuracy and error of the score, side by side, for two discriminators by their names in `found`."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8))
    accuracy = {"the best there is": found["accuracy"][base]}
    errors = {"no guidance": found["errors"][base]}
    for name, label in names.items():
        accuracy[label], errors[label] = found["accuracy"][name], found["errors"][name]
    lines(left, accuracy, "accuracy")
    lines(right, errors, "relative error of the joint score", "log")
    return figure


def of_samples(points: Tensor) -> str:
    return f"correlation {points.T.corrcoef()[0, 1]:.2f}\nvariance {points.var(0).mean():.2f}"


def draw_all(found: dict) -> dict[str, plt.Figure]:
    """A figure for each trap, and the score fields of what is right."""
    titles = {"both": "as it should be", "additive": "additive", "kernel": "another kernel"}
    titles |= {weight: f"weight {weight:g}" for weight in WEIGHTS}
    samples = found["samples"]
    named = {name: {f"{title}\n{of_samples(samples[name])}": samples[name]} for name, title in titles.items()}
    target, bases = make_target("gaussian", RHO)
    return {
        "toy_scores": score_fields(target, bases, found["networks"]["both"], joint_score),
        "trap_additive": clouds(named["both"] | named["additive"]),
        "trap_bce": by_level(
            found, "mixture", {"mixture bce": "cross-entropy alone", "mixture both": "and noise loss"}
        ),
        "trap_kernel": clouds(named["both"] | named["kernel"]),
        "trap_weight": clouds({title: z for weight in WEIGHTS for title, z in named[weight].items()}),
        "trap_accuracy": by_level(found, "gaussian", {"few": "200 pairs seen", "both": "new pairs each step"}),
    }
