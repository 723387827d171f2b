"""Where onsets disagree: which hits of a clip, which bars, and what of it is the picture's own disagreement.

    python benchmarks/onsets.py                             the shipped weights, 13 minutes on one core
    python benchmarks/onsets.py --n 1000 --weight 1         more clips, another weight
    python benchmarks/onsets.py --told 3 2                  base models told of more noise than there is
    python benchmarks/onsets.py --from 0.2                  real clips noised to t = 0.2, and drawn from there on

Hit F1 and pitch accuracy, then the median over matched hits of |seen - heard| in ms, of real clips and of guided ones,
with a modality given or none: all hits; the first, second and later ones of a clip; those on the inner bars and on the
two at the edge; those that fall in the first and in the second half of a frame, where the instant of the impact is
further from what the last frame shows. The last column needs no sound: |fall - rebound| are the two instants at which
one impact happens by the ball's fall before it and by its rise after it. A ball on its parabola has one.

With --from, what is off after the last steps is told from what was off before: where the instant of a hit still stands
in the noisy clips, and is lost. A row without guidance is there to compare.

With --told, base models are asked at a noise level whose sigma / alpha is f times as large, and keep less of what they
see, be it signal or an error of the steps before (after Li et al. 2024, arXiv 2305.15583, who choose that level by the
variance of the state).
"""

import sys  # isort: skip
from pathlib import Path  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules it shares
import script  # isort: skip, before what takes seconds to import

import argparse
import math
from functools import partial

import torch
from torch import Tensor, nn

import checkpoint
import data
import hits
import media
from evaluate import held_out, print_table
from guidance import CLIMB, JointEps, by_noise_level, denoise, sample, time_grid
from manifest import save_report
from many import generate
from score import VPSDE, FrozenModel

TOLD = (0.02, 0.35)  # the noise levels at which models are told of more


class Told(nn.Module):
    """A base model that is told of f times the noise: eps at t from its x0 of (alpha_u / alpha_t) x_t at u.

    sigma_u / alpha_u = f sigma_t / alpha_t. Outside of TOLD f is 1. xt (B, ...), t (B,) the same for all rows.
    """

    def __init__(self, model: FrozenModel, f: float):
        super().__init__()
        self.model, self.f, self.sde = model, f, model.sde

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        if not TOLD[0] <= t[0].item() <= TOLD[1]:
            return self.model(xt, t)
        u = self.sde.time_at(self.sde.log_snr(t.double()) - 2 * math.log(self.f)).to(t.dtype)
        xu = xt * (self.sde.marginal(u[0])[0] / self.sde.marginal(t[0])[0])
        return self.sde.x0_to_eps(xt, self.sde.eps_to_x0(xu, self.model(xu, u), u), t)


def draw_from(
    start: float,
    eps_model: JointEps,
    video: Tensor,
    audio: Tensor,
    generator: torch.Generator,
    climb_below: float = 0.0,
    steps: int = 25,
) -> tuple[Tensor, Tensor]:
    """Clips drawn by those of `steps` steps that lie below t = start, from real clips noised to it."""
    sde = eps_model.sde
    grid = time_grid(steps, sde, climb_below)
    grid = torch.cat([torch.full((1,), start, dtype=grid.dtype), grid[grid < start]])
    t = torch.full((len(video),), start, device=video.device)
    states = tuple(sde.perturb(x, t, sde.prior(x.shape, generator, x.device)) for x in (video, audio))
    *_, states = denoise(eps_model, states, sde, len(grid) - 1, generator=generator, grid=grid, climb_below=climb_below)
    return tuple(x if known is None else known for x, known in zip(states, eps_model.given, strict=True))


def fall_against_rebound(video: Tensor, seen: list[list[hits.Hit]], fps: int) -> Tensor:
    """Seconds (hits,) by which the rebound, a fall seen backwards, puts each impact later than the fall does."""
    ball, gaps = hits.ball_height((video.clamp(-1, 1) + 1) / 2), []
    last = ball.shape[1] - 1
    for heights, clip in zip(ball, seen, strict=True):
        for time in (h[0] for h in clip if h[0] * fps < last - 1):  # two frames after it
            after = int(time * fps) + 1
            gaps.append(after / fps - hits.fall_time(heights.flip(0), last - after, 1 / fps) - time)
    return torch.tensor(gaps)


def breakdown(video: Tensor, audio: Tensor, fps: int) -> dict[str, float | None]:
    """The table's row for clips video (B, 3, T, H, W), audio (B, 1, n_mels, L)."""
    video = media.to_video(media.to_frames(video))
    seen, heard = hits.see(video), hits.hear(audio)
    rows = [
        (abs(s[0] - h[0]), clip.index(s), s[1], s[0] * fps % 1)
        for clip, sounds in zip(seen, heard, strict=True)
        for s, h in hits.match(clip, sounds)
    ]
    error, order, bar, phase = torch.tensor(rows).reshape(-1, 4).T
    edge = (bar == 0) | (bar == len(data.SCALE) - 1)
    groups = {"all hits": order >= 0, "first": order == 0, "second": order == 1, "later": order > 1}
    groups |= {"inner bars": ~edge, "edge bars": edge, "early in frame": phase < 0.5, "late in frame": phase >= 0.5}
    agreement = hits.agreement(seen, heard)
    row = {name: agreement[name] for name in ("hit_f1", "pitch_accuracy")}
    row |= {name: 1000 * error[group].median().item() if group.any() else None for name, group in groups.items()}
    gaps = fall_against_rebound(video, seen, fps)
    return row | {"fall - rebound": 1000 * gaps.abs().median().item() if len(gaps) else None}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=512, help="clips a system (default %(default)s)")
    parser.add_argument("--weight", type=float, nargs="+", default=[1.0, 3.0], help="as of evaluate.py")
    parser.add_argument("--told", type=float, nargs=2, default=[1.0, 1.0], metavar=("VIDEO", "AUDIO"), help="f of each")
    parser.add_argument("--from", type=float, dest="start", metavar="T", help="noise level at which to start")
    script.add_climb(parser, CLIMB)
    parser.add_argument("--run", type=Path, default=checkpoint.PRETRAINED, help="with model.pt, video.pt, audio.pt")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the held-out clips and of the samples")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/onsets"))
    args = script.parse_options(parser, argv)
    if args.n < 2 or len(args.weight) > 3:
        parser.error("--n must be at least 2, and --weight one to three numbers")
    if not min(args.told) > 0:
        parser.error("--told must be above 0")
    if args.start is not None and not VPSDE().t_min < args.start <= 1:
        parser.error(f"--from is a noise level above {VPSDE().t_min:g}, at most 1")

    *bases, discriminator = checkpoint.load_run(args.run, args.device)
    told = [model if f == 1 else Told(model, f) for model, f in zip(bases, args.told, strict=True)]
    world = data.Xylophone(discriminator.video_shape[-1])
    real, _ = held_out(world, args.n, args.seed)
    video, audio = (x.to(args.device) for x in real)
    clips = {"video": video, "audio": audio}

    def draw(guide, known: tuple[bool, bool], *shapes: tuple, generator: torch.Generator, video: Tensor, audio: Tensor):
        given = tuple(x if k else None for x, k in zip((video, audio), known, strict=True))
        weight = by_noise_level(*args.weight, given=any(known))
        if args.start is not None:
            eps_model = JointEps(*told, guide, weight, given, generator=generator)
            return draw_from(args.start, eps_model, video, audio, generator, args.climb)
        given = dict(zip(("given_video", "given_audio"), given, strict=True))
        how = {"climb_below": args.climb, "generator": generator, "device": args.device}
        return sample(*told, guide, *shapes, weight=weight, **how, **given)

    systems = {
        "guided": (discriminator, (False, False)),
        "audio given video": (discriminator, (True, False)),
        "video given audio": (discriminator, (False, True)),
    }
    systems |= {"unguided": (None, (False, False))} if args.start is not None else {}
    rows = {"real": breakdown(*real, world.fps)}
    for name, system in systems.items():
        drawn = generate(partial(draw, *system), [x.shape[1:] for x in real], args.seed, args.n, name, clips)[:2]
        rows[name] = breakdown(*drawn, world.fps)
    asked = {key: getattr(args, key) for key in ("n", "seed", "weight", "told", "climb")} | {"from": args.start}
    save_report(args, asked | {"systems": rows})
    print_table(rows, list(rows["real"]))
    print(f"report.json is in {args.out}")


if __name__ == "__main__":
    script.run_main(main)
