"""Why sounds are heard off the picture they were made for: by their instants, or by how their attacks swell.

    python benchmarks/attacks.py                            the shipped weights, 2 minutes on two cores
    python benchmarks/attacks.py --n 1000 --run runs/mine   more clips, other weights

Real pictures are given, and sounds made for them, so that the true sound x of each is known. Around one hit, what is
made is to first order x moved and amplified, and what is left:

    made - x = shift D + gain G + rest     D, G: what x changes by per ms that all in it is later, per dB that it is
                                           louder; shift and gain by least squares

`onset error` is the median of |seen - heard|, as in hits.py, `attack error` the root mean square of the rest, in dB,
where x is within 10 dB of the loudest in the window. What each costs is heard in sounds of which one half is true:

    shifts alone      when x is heard, later by the shift
    attacks alone     when what is made is heard, earlier by the shift

The other rows ask the audio model alone: the mean of its x0_hat over fresh noises on x. Noise that is its own is
averaged away there, and what is left is what the network itself gets wrong.
"""

import sys  # isort: skip
from pathlib import Path  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules it shares
import script  # isort: skip, before what takes seconds to import

import argparse
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import checkpoint
import data
import evaluate
import hits
import media
from guidance import CLIMB, by_noise_level, sample
from manifest import save_report
from many import generate
from score import FrozenModel
from seeds import stream

LEVELS = (0.05, 0.1, 0.15, 0.2, 0.3)
NOISES = 8  # that x0_hat is averaged over
STEP = 0.002  # s by which clips are moved for D
AROUND = (0.05, 0.08)  # s before and after a hit
NEAR = 0.1  # s within which there must be one hit seen, one heard in x and one in what is made
LOUD = 10.0  # dB
DECIBEL = -2 / media.FLOOR_DB  # in the units of a spectrogram


class Drawn(NamedTuple):
    """Real clips, D and G of their sounds, their hits, and the same as seen and as heard."""

    video: Tensor
    audio: Tensor
    slopes: tuple[Tensor, Tensor]
    found: list[list[hits.Hit]]
    seen: list[list[hits.Hit]]
    heard: list[list[hits.Hit]]


def drawn_with_slopes(world: data.Xylophone, n: int, seed: int) -> Drawn:
    def sound(later: float, decibels: float = 0.0) -> Tensor:
        waveform = world.render(n, torch.Generator().manual_seed(seed), later)[1]
        return media.log_mel(10 ** (decibels / 20) * waveform)

    frames, waveform, found = world.render(n, torch.Generator().manual_seed(seed))
    video, audio = media.to_video(frames), media.log_mel(waveform)
    later = (sound(STEP) - sound(-STEP)) / (2000 * STEP)
    louder = sound(0.0, 0.5) - sound(0.0, -0.5)
    return Drawn(video, audio, (later, louder), found, hits.see(video), hits.hear(audio))


def fit(difference: Tensor, slopes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Least squares of difference (M, L) on the slopes, each (M, L): their coefficients, and the rest (M, L)."""
    columns = torch.stack([slope.flatten() for slope in slopes], 1)
    coefficients = torch.linalg.lstsq(columns, difference.flatten()[:, None]).solution[:, 0]
    return coefficients, difference - (columns @ coefficients).view_as(difference)


def row(made: Tensor, drawn: Drawn) -> dict[str, float]:
    """One line of the table, over the hits that picture, x and made all show; medians but for the attack error."""
    per_second = media.SAMPLE_RATE / media.HOP
    heard, columns = hits.hear(made), []
    for clip, found in enumerate(drawn.found):
        for time, *_ in found:
            shown = [[h for h in told[clip] if abs(h[0] - time) < NEAR] for told in (drawn.seen, drawn.heard, heard)]
            if any(len(h) != 1 for h in shown):
                continue
            start, end = (max(0, round((time + gap) * per_second)) for gap in (-AROUND[0], AROUND[1]))
            x, difference, *slopes = (
                s[clip, 0, :, start:end] for s in (drawn.audio, made - drawn.audio, *drawn.slopes)
            )
            (shift, _), rest = fit(difference, slopes)
            loud = rest[x > x.max() - LOUD * DECIBEL].square().mean() / DECIBEL**2
            columns.append([*(1000 * (h[0][0] - time) for h in shown), shift.item(), loud.item()])
    seen, true, made_heard, shift, rest = torch.tensor(columns).T

    def median(x: Tensor) -> float:
        return x.abs().median().item()

    return {
        "hits": len(columns),
        "onset error": median(seen - made_heard),
        "shifts alone": median(seen - true - shift),
        "attacks alone": median(seen - made_heard + shift),
        "real": median(seen - true),
        "shift": median(shift),
        "attack error": rest.mean().sqrt().item(),
    }


@torch.no_grad()
def mean_estimate(model: FrozenModel, audio: Tensor, level: float, seed: int) -> Tensor:
    t, sde, total = torch.full((len(audio),), level, device=audio.device), model.sde, 0.0
    for k in range(NOISES):
        eps = torch.randn(audio.shape, generator=stream(seed, k)).to(audio)
        xt = sde.perturb(audio, t, eps)
        total = total + sde.eps_to_x0(xt, model(xt, t), t)
    return total / NOISES


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=256, help="clips (default %(default)s)")
    parser.add_argument("--run", type=Path, default=checkpoint.PRETRAINED, help="with model.pt, video.pt, audio.pt")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the held-out clips and of the noise")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/attacks"))
    args = script.parse_options(parser, argv)
    if args.n < 8:
        parser.error("--n must be at least 8: not every clip has a hit")

    models = checkpoint.load_run(args.run, args.device)
    drawn = drawn_with_slopes(data.Xylophone(models[2].video_shape[-1]), args.n, args.seed)
    weight = by_noise_level(1, 3, given=True)
    guided = partial(sample, *models, weight=weight, climb_below=CLIMB, device=args.device)
    shapes = (drawn.video.shape[1:], drawn.audio.shape[1:])
    made = generate(guided, shapes, args.seed, args.n, "audio given video", {"given_video": drawn.video})[1]
    rows = {"audio given video": row(made, drawn)}
    for level in LEVELS:
        estimate = mean_estimate(models[1], drawn.audio.to(args.device), level, args.seed).cpu()
        rows[f"mean estimate at {level:g}"] = row(estimate, drawn)
    save_report(args, {"n": args.n, "seed": args.seed, "systems": rows})
    evaluate.print_table(rows, list(rows["audio given video"]))
    print(f"report.json is in {args.out}")


if __name__ == "__main__":
    script.run_main(main)
