"""The pictures of the toy: score fields, samples over the true density, error against t.

Used by toy/run.py, toy/traps.py and toy/walkthrough.ipynb.
"""

from pathlib import Path

import torch

import figures
from figures import plt

REACH = 2.8


def draw_all(out: Path, target, bases: tuple, systems: dict, samples: dict, errors: dict, levels: tuple, joint_score):
    """scores.png, samples.png and errors.png in `out`."""
    fields = score_fields(target, bases, systems["both"], joint_score)
    figures.save_figure(out / "scores.png", fields, dpi=70)
    sample_clouds(out / "samples.png", target, samples)
    lines = figures.draw_lines(levels, errors, "t", "relative error of the joint score", yscale="log")
    figures.save_figure(out / "errors.png", lines)


def grid(n: int) -> torch.Tensor:
    axis = torch.linspace(-REACH, REACH, n)
    return torch.cartesian_prod(axis, axis)


def show_density(axis: plt.Axes, target, level: float, n: int = 120) -> None:
    density = target.log_density(grid(n), torch.full((n * n,), level)).exp().reshape(n, n).T.numpy()
    axis.imshow(density, origin="lower", extent=(-REACH, REACH) * 2, cmap="Blues", alpha=0.7)


def score_fields(target, bases: tuple, system, joint_score) -> plt.Figure:
    """Rows: three noise levels. Columns: the true joint score, the guided one, their difference on the same scale."""
    z = grid(15)
    figure, axes = plt.subplots(3, 3, figsize=(10, 10), sharex=True, sharey=True)
    for row, level in zip(axes, (0.1, 0.3, 0.6), strict=True):
        t = torch.full((len(z),), level)
        true, guided = target.score(z, t), joint_score(system, bases, z, t)
        scale = 12 * true.norm(dim=1).mean().item()
        for axis, field, name in zip(row, (true, guided, guided - true), ("true", "guided", "difference"), strict=True):
            show_density(axis, target, level)
            axis.quiver(*z.T.numpy(), *field.T.numpy(), angles="xy", scale=scale, width=0.005)
            axis.set_title(f"{name}, t = {level}")
    figure.tight_layout()
    return figure


def sample_clouds(path: Path, target, samples: dict) -> None:
    """3,000 samples of each system over the true density at t = 0."""
    figure, axes = plt.subplots(1, len(samples), figsize=(3 * len(samples), 3.2), sharex=True, sharey=True)
    for axis, (name, points) in zip(axes, samples.items(), strict=True):
        show_density(axis, target, 0.0)
        axis.scatter(*points[:3000].T.numpy(), s=1, c="tab:orange", alpha=0.5)
        axis.set(title=name, xlim=(-REACH, REACH), ylim=(-REACH, REACH), xlabel="x")
    axes[0].set_ylabel("y")
    figure.tight_layout()
    figures.save_figure(path, figure, dpi=80)
