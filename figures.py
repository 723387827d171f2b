"""Pictures of clips and of training, through matplotlib.

Used by train.py (samples.png, loss.png), sample.py and evaluate.py (contact sheets).
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

import media
from files import atomic

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402, the backend is chosen first: servers have no screen


def save_sheet(path: Path, video: Tensor | None, audio: Tensor | None, titles: Sequence[str] | None = None) -> None:
    """Per clip a strip of its frames over its spectrogram, on one time axis; either of the two may be None."""
    clips = len(audio if video is None else video)
    ratios = [1.0] * (video is not None) + [1.4] * (audio is not None)
    size, grid = (12, 1.05 * clips * sum(ratios)), {"height_ratios": ratios * clips}
    figure, axes = plt.subplots(clips * len(ratios), 1, figsize=size, squeeze=False, gridspec_kw=grid)
    for axis in axes[:, 0]:
        axis.set_axis_off()
    for clip, rows in enumerate(axes.reshape(clips, -1)):
        if video is not None:
            rows[0].imshow(torch.cat(list(media.to_frames(video[clip : clip + 1])[0]), dim=1).numpy(), aspect="auto")
            rows[0].set_title(titles[clip] if titles else "", fontsize=8, loc="left", pad=2)
        if audio is not None:
            rows[-1].imshow(audio[clip, 0].cpu().numpy(), origin="lower", aspect="auto", vmin=-1, vmax=1, cmap="magma")
    figure.tight_layout(pad=0.3)
    save_figure(path, figure)


def save_spectrogram(path: Path, spectrogram: Tensor) -> None:
    """(n_mels, L) in [-1, 1] as a picture of four pixels a cell, pitch upwards."""
    pixels = spectrogram.flip(0).cpu().clamp(-1, 1).repeat_interleave(4, 0).repeat_interleave(4, 1)
    with atomic(path) as temporary:
        plt.imsave(temporary, pixels.numpy(), vmin=-1, vmax=1, cmap="magma")


def save_curves(path: Path, history: list[dict]) -> None:
    """Each part of the loss against the step, and the noise levels' latest values beneath it."""
    names = sorted({name for entry in history for name in entry["loss"]})
    if not names:
        return
    figure, axes = plt.subplots(2, len(names), figsize=(4 * len(names), 6), squeeze=False)
    for name, (top, bottom) in zip(names, axes.T, strict=True):
        entries = [entry for entry in history if name in entry["loss"]]
        top.plot([e["step"] for e in entries], [e["loss"][name] for e in entries])
        top.set(title=name, xlabel="step")
        level = entries[-1]["levels"][name]
        bottom.plot([(b + 0.5) / len(level) for b in range(len(level))], level, "o-")
        bottom.set(xlabel="t, at the last step")
        if min(e["loss"][name] for e in entries) > 0 and name != "correct":
            top.set_yscale("log")
    figure.tight_layout()
    save_figure(path, figure)


def draw_lines(
    x: Sequence, lines: dict[str, Sequence], xlabel: str, ylabel: str, xscale: str = "log", yscale: str = "linear"
) -> plt.Figure:
    """A line for each name, over x, through those of its values that are not None."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for name, values in lines.items():
        points = [(a, b) for a, b in zip(x, values, strict=True) if b is not None]
        axis.plot(*zip(*points, strict=True), "o-", label=name)
    axis.set(xscale=xscale, yscale=yscale, xlabel=xlabel, ylabel=ylabel)
    if xscale == "log":
        axis.set_xticks(x, [f"{value:g}" for value in x])
        axis.minorticks_off()
    axis.legend()
    axis.grid(alpha=0.3)
    figure.tight_layout()
    return figure


def save_figure(path: Path, figure: plt.Figure, dpi: int = 100) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
    plt.close(figure)
