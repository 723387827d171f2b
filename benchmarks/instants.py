"""How well each network knows when a hit is, by noise level: the base models by a bound, the discriminator by its pull.

    python benchmarks/instants.py                           the shipped weights, 2 minutes on one core
    python benchmarks/instants.py --n 1000 --run runs/mine  more clips, other weights

Let D be what a clip changes by per ms that everything in it happens later, taken around one hit. Of a clip x_0 at noise
level t, with r = sigma_t / alpha_t, three shifts in ms:

    missed   <x_0 - x0_hat, D> / |D|^2         by which the base model's estimate puts the hit too early
    bound    r / |D|                           the spread of the best estimate, were all but the instant known
    pull     -r <residual noise, D> / |D|^2    by which the discriminator, at weight 1, puts it later

The bound is that of Cramer and Rao: 1 / bound^2 is the information that x_t has on the instant. A base model whose
missed is near it has nothing left to learn from one modality. What the other one tells is the discriminator's to add:
`explained` is the share of missed^2 that goes by adding best weight * pull. Shifts count by their information, so
that faint hits, whose instants nobody can tell, do not decide.

`both`: both modalities at t. `given`: the other one is clean.
"""

import sys  # isort: skip
from pathlib import Path  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules it shares
import script  # isort: skip, before what takes seconds to import

import argparse
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

import checkpoint
import data
import media
from discriminator import residual_noise
from evaluate import print_table
from hits import Hit
from manifest import save_report
from pairs import Levels
from score import VPSDE, FrozenModel

LEVELS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
STEP = 0.002  # s by which clips are moved for D
AROUND = {"video": (0.25, 0.5), "audio": (0.05, 0.08)}  # s before and after a hit that D is taken from
BATCH = 64


class Drawn(NamedTuple):
    """Clips by modality, D of each, the hits of each clip, and the seconds that a clip lasts."""

    clips: dict[str, Tensor]
    change: dict[str, Tensor]
    found: list[list[Hit]]
    seconds: float


def drawn_with_change(world: data.Xylophone, n: int, seed: int) -> Drawn:
    """n clips, what each changes by per ms that all in it is later, and their hits.

    Without those so near to a frame's instant that within STEP their bar lights up in another frame: that is no shift.
    """

    def render(later: float) -> tuple[dict[str, Tensor], list]:
        frames, waveform, found = world.render(n, torch.Generator().manual_seed(seed), later)
        return {"video": media.to_video(frames), "audio": media.log_mel(waveform)}, found

    (clips, found), (after, _), (before, _) = render(0.0), render(STEP), render(-STEP)
    found = [
        [hit for hit in clip if math.ceil((hit[0] - STEP) * world.fps) == math.ceil((hit[0] + STEP) * world.fps)]
        for clip in found
    ]
    return Drawn(clips, {kind: (after[kind] - before[kind]) / (2000 * STEP) for kind in clips}, found, world.seconds)


def around_hits(kind: str, x: Tensor, drawn: Drawn) -> list[Tensor]:
    """The part of x, (B, C, T, H, W) or (B, C, M, L), around each hit of each clip."""
    axis = 1 if kind == "video" else 2  # of a clip's time
    before, after = AROUND[kind]
    per_second = x.shape[1 + axis] / drawn.seconds
    parts = []
    for clip, hits in zip(x, drawn.found, strict=True):
        for time, *_ in hits:
            start, end = (max(0, round((time + gap) * per_second)) for gap in (-before, after))
            parts.append(clip.narrow(axis, start, min(end, clip.shape[axis]) - start))
    return parts


def shifts(kind: str, difference: Tensor, drawn: Drawn) -> Tensor:
    """<difference, D> / |D|^2 at each hit, in ms: by how much later the hit is in x + difference than in x."""
    pairs = zip(*(around_hits(kind, x, drawn) for x in (difference, drawn.change[kind])), strict=True)
    return torch.stack([(c * d).sum() / d.square().sum() for c, d in pairs])


def pull(discriminator: nn.Module, states: list[Tensor], t: Levels, sde: VPSDE) -> list[Tensor]:
    """The residual noise of both modalities, in batches."""
    parts = []
    for i in range(0, len(states[0]), BATCH):
        vt, at = (x[i : i + BATCH].requires_grad_() for x in states)
        levels = tuple(x[i : i + BATCH] for x in t) if isinstance(t, tuple) else t[i : i + BATCH]
        parts.append([x.detach() for x in residual_noise(discriminator(vt, at, levels), vt, at, levels, sde)])
    return [torch.cat(x) for x in zip(*parts, strict=True)]


def row(missed: Tensor, bound: Tensor, pulls: Tensor) -> dict[str, float]:
    """One line of the table, from the three shifts (hits,); means are weighted by the information 1 / bound^2."""
    information = 1 / bound.square()

    def mean(x: Tensor) -> float:
        return ((x * information).sum() / information.sum()).item()

    best = mean(missed * pulls) / max(mean(pulls.square()), 1e-12)
    left = mean((missed - best * pulls).square())
    return {
        "missed": mean(missed.square()) ** 0.5,
        "bound": mean(bound.square()) ** 0.5,
        "best weight": best,
        "explained": 1 - left / mean(missed.square()),
        "left": left**0.5,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=256, help="clips (default %(default)s)")
    parser.add_argument("--run", type=Path, default=checkpoint.PRETRAINED, help="with model.pt, video.pt, audio.pt")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the held-out clips and of the noise")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/instants"))
    args = script.parse_options(parser, argv)
    if args.n < 8:
        parser.error("--n must be at least 8: not every clip has a hit")

    *bases, discriminator = checkpoint.load_run(args.run, args.device)
    world = data.Xylophone(discriminator.video_shape[-1])
    drawn = drawn_with_change(world, args.n, args.seed)
    generator, rows = torch.Generator().manual_seed(args.seed + 1), {}
    for level in LEVELS:
        for known in (None, 0, 1):
            rows |= rows_at(level, known, drawn, bases, discriminator, generator)
    rows = {name: rows[name] for name in sorted(rows)}
    save_report(args, {"n": args.n, "seed": args.seed, "systems": rows})
    print_table(rows, list(next(iter(rows.values()))))
    print(f"report.json is in {args.out}")


def rows_at(
    level: float,
    known: int | None,
    drawn: Drawn,
    bases: list[FrozenModel],
    discriminator: nn.Module,
    generator: torch.Generator,
) -> dict[str, dict]:
    """The lines of one noise level: of both modalities, or of the one whose other is known."""
    sde, device = bases[0].sde, next(discriminator.parameters()).device
    t = torch.full((len(drawn.found),), level, device=device)
    levels = tuple(torch.full_like(t, sde.t_min) if k == known else t for k in range(2))
    states = []
    for x, own in zip(drawn.clips.values(), levels, strict=True):
        noise = torch.randn(x.shape, generator=generator).to(device)
        states.append(sde.perturb(x.to(device), own, noise))
    residual = pull(discriminator, states, levels if known is not None else t, sde)
    alpha, sigma = sde.marginal(torch.tensor(level))
    r, rows = (sigma / alpha).item(), {}
    for k, (kind, model) in enumerate(zip(drawn.clips, bases, strict=True)):
        if k == known:
            continue
        with torch.no_grad():
            x0_hat = [
                sde.eps_to_x0(x, model(x, own), own)
                for x, own in zip(states[k].split(BATCH), t.split(BATCH), strict=True)
            ]
        missed = shifts(kind, drawn.clips[kind] - torch.cat(x0_hat).cpu(), drawn)
        pulls = shifts(kind, -r * residual[k].cpu(), drawn)
        bound = torch.stack([r / d.norm() for d in around_hits(kind, drawn.change[kind], drawn)])
        rows[f"{kind}, {'both' if known is None else 'given'}, {level:g}"] = row(missed, bound, pulls)
    return rows


if __name__ == "__main__":
    script.run_main(main)
