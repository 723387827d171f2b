"""The pictures of the README, made anew from the shipped weights and the toy.

    python docs/figures.py                    all of them, into docs/; about 3 minutes on 2 cores
    python docs/figures.py noise animation    some of them

    noise       step 1: a clip at six noise levels
    log_ratio   step 2: the pair term of real and of shuffled pairs, by noise level
    loss        step 3: what the residual explains of the noise that the base models miss
    guidance    step 4: a sound estimated from noise, by the base model alone and with the residual
    animation   step 5: a clip being denoised, guided and independent from the same noise
    traps       toy_scores, trap_additive, trap_bce, trap_kernel, trap_weight, trap_accuracy: toy/traps.py

White behind dark lines, so that they can be read on a light page and on a dark one.
"""

import sys  # isort: skip
from pathlib import Path  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules of the project
import script  # isort: skip, before what takes seconds to import

import argparse
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import checkpoint
import information
import media
from data import Xylophone
from figures import draw_lines, plt
from files import atomic
from guidance import JointEps, by_noise_level, denoise
from pairs import perturb_pairs
from toy import traps

DOCS = Path(__file__).resolve().parent
SEED, CLIP = 900_000, 2  # of the clips shown, which no training draws
HELD_OUT = 256  # pairs behind the two curves
STARTS, ANIMATED = 25, 18  # the noise that is animated
COLOURS = 48


@cache
def models() -> tuple:
    return checkpoint.load_run(checkpoint.PRETRAINED)


@cache
def pairs() -> tuple[Tensor, Tensor]:
    return Xylophone().batch(HELD_OUT, torch.Generator().manual_seed(SEED))


@cache
def levels() -> list[dict]:
    return information.by_level(models(), pairs(), SEED, "cpu")


def one_clip() -> tuple[Tensor, Tensor]:
    return tuple(x[CLIP : CLIP + 1] for x in pairs())


def spectrogram(axis: plt.Axes, audio: Tensor, title: str) -> None:
    axis.imshow(audio[0, 0].numpy(), origin="lower", aspect="auto", vmin=-1, vmax=1, cmap="magma")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)


def noise() -> plt.Figure:
    """Six noise levels; the frame in the middle of the clip above its spectrogram."""
    sde, generator = models()[0].sde, torch.Generator().manual_seed(SEED)
    clip = one_clip()
    eps = [torch.randn(x.shape, generator=generator) for x in clip]
    figure, axes = plt.subplots(2, 6, figsize=(8, 2.7))
    for (above, below), level in zip(axes.T, (0.0, 0.1, 0.3, 0.5, 0.7, 1.0), strict=True):
        t = torch.full((1,), level)
        video, audio = (sde.perturb(x, t, e) for x, e in zip(clip, eps, strict=True))
        above.imshow(media.to_frames(video)[0, 8].numpy())
        above.set(xticks=[], yticks=[])
        alpha = sde.marginal(t)[0].item()
        above.set_title(rf"t = {level:g}, $\alpha$ = {alpha:.2f}", fontsize=9)
        spectrogram(below, audio, "")
    return figure


def by_level(names: dict[str, str], ylabel: str) -> plt.Figure:
    curves = {label: [row[key] for row in levels()] for key, label in names.items()}
    return draw_lines([row["t"] for row in levels()], curves, "t", ylabel, xscale="linear")


def log_ratio() -> plt.Figure:
    return by_level({"pair_real": "real pairs", "pair_shuffled": "shuffled pairs"}, "pair term, nats")


def loss() -> plt.Figure:
    return by_level({"audio_explained": "sound", "video_explained": "picture"}, "share of the noise explained")


def guidance() -> plt.Figure:
    """x0 as the audio model estimates it at t = 0.6, alone and with the residual, the noisy picture beside it."""
    sde, t, generator = models()[0].sde, torch.full((1,), 0.6), torch.Generator().manual_seed(SEED)
    clip = one_clip()
    noisy = perturb_pairs(*models()[:2], clip, t, generator, ask_base=False)
    states = (noisy.vt, noisy.at)
    estimates = {
        name: sde.eps_to_x0(noisy.at, JointEps(*models(), weight)(states, t)[1], t)
        for name, weight in (("the audio model alone", 0.0), ("with the residual", 1.0))
    }
    shown = {r"$a_t$, t = 0.6": noisy.at} | estimates | {r"the truth, $a_0$": clip[1]}
    figure, axes = plt.subplots(1, 4, figsize=(8, 1.9))
    for axis, (title, audio) in zip(axes, shown.items(), strict=True):
        spectrogram(axis, audio, title)
    return figure


def panel(video: Tensor, audio: Tensor, title: str) -> Image.Image:
    """Eight frames of a clip over its spectrogram, 256 pixels wide."""
    strip = torch.cat(list(media.to_frames(video)[0, ::2]), dim=1)
    sound = plt.get_cmap("magma")((audio[0, 0].flip(0).clamp(-1, 1).numpy() + 1) / 2, bytes=True)
    picture = Image.new("RGB", (256, 120), "white")
    ImageDraw.Draw(picture).text((2, 3), title, fill="black")
    picture.paste(Image.fromarray(strip.numpy()), (0, 18))
    picture.paste(Image.fromarray(sound[..., :3]).resize((256, 64), Image.Resampling.NEAREST), (0, 52))
    return picture


def animation(path: Path) -> None:
    """An animated picture: two clips from the same noise, step by step, then held."""
    shapes, sde, runs = ((STARTS, 3, 16, 32, 32), (STARTS, 1, 64, 128)), models()[0].sde, {}
    for name, weight in (("guided", by_noise_level(1.0, 3.0)), ("independent", 0.0)):
        generator = torch.Generator().manual_seed(SEED)
        start = tuple(sde.prior(shape, generator) for shape in shapes)
        states = [start, *denoise(JointEps(*models(), weight), start, sde, 25, generator=generator)]
        runs[name] = [tuple(x[ANIMATED : ANIMATED + 1] for x in pair) for pair in states]
    pictures = []
    for step in [*range(0, 25, 2), 25]:
        both = Image.new("RGB", (2 * 256 + 16, 120), "white")
        for k, (name, states) in enumerate(runs.items()):
            both.paste(panel(*states[step], f"{name}, step {step} of 25"), (272 * k, 0))
        pictures.append(both.quantize(COLOURS, dither=Image.Dither.NONE))
    times = [200] * (len(pictures) - 1) + [4000]
    with atomic(path) as temporary:
        pictures[0].save(
            temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0, optimize=True
        )


def save(name: str, figure: plt.Figure) -> None:
    """As a png of few colours, a third of the size."""
    figure.tight_layout()
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    with atomic(DOCS / f"{name}.png") as temporary:
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(temporary, format="PNG", optimize=True)
    print(DOCS / f"{name}.png")


def main(argv: list[str] | None = None) -> None:
    drawn = {"noise": noise, "log_ratio": log_ratio, "loss": loss, "guidance": guidance}
    names = (*drawn, "animation", "traps")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the pictures above (default all)")
    args = script.parse_options(parser, argv)
    if unknown := set(args.names) - set(names):
        parser.error(f"no picture {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    for name in args.names or names:
        if name == "animation":
            animation(DOCS / "denoising.gif")
            print(DOCS / "denoising.gif")
        elif name == "traps":
            found = traps.measure()
            for trap, figure in traps.draw_all(found).items():
                save(trap, figure)
            for name in ("errors", "accuracy"):
                print(f"{name}, t = {', '.join(map(str, traps.LEVELS))}")
                for system, values in found[name].items():
                    print(f"{system:13} " + "  ".join(f"{value:.4f}" for value in values))
        else:
            save(name, drawn[name]())


if __name__ == "__main__":
    script.run_main(main)
