"""Alignment and fidelity of guided clips by solver, number of steps and guidance weight: a table and a figure.

    python benchmarks/steps.py                                                     every solver, the shipped weights
    python benchmarks/steps.py --solvers ddpm --weight 1 4                         another row for each number of steps
    python benchmarks/steps.py --steps 25 --weight 1 3 --audio-weight 1 4          sound guided by weights of its own
    python benchmarks/steps.py --steps 25 --fine 0.3 0.6                           steps as short as of 250 there

A step calls both base models and the discriminator once each. Alignment as in evaluate.py, on clips of its own. Rows
that --out already holds are kept and shown again, so that runs with different weights share a table and a figure.
"""

import sys  # isort: skip
from pathlib import Path  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules it shares
import script  # isort: skip, before what takes seconds to import

import argparse
import hashlib
import json
from functools import partial

import torch

import checkpoint
import figures
from data import Xylophone
from evaluate import compare, held_out, print_table
from guidance import CLIMB, SOLVERS, by_noise_level, sample, time_grid
from manifest import save_report
from many import generate
from score import VPSDE

FINE = 250  # steps of the grid that --fine takes its noise levels from


def refined(steps: int, low: float, high: float, sde: VPSDE, climb_below: float = 0.0) -> torch.Tensor:
    """The grid of `steps`, with the noise levels of one of FINE for low < t <= high (float64)."""
    coarse, fine = (time_grid(n, sde, climb_below) for n in (steps, FINE))
    outside = coarse[(coarse <= low) | (coarse > high)]
    return torch.cat([outside, fine[(fine > low) & (fine <= high)]]).sort(descending=True).values


def digest(run: Path) -> str:
    """Which weights a run folder holds: rows of others do not belong in its table."""
    found = hashlib.sha256()
    for path in (run / f"{name}.pt" for name in ("model", "video", "audio")):
        found.update(path.read_bytes() if path.exists() else b"")  # load_run says what is missing
    return found.hexdigest()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=256, help="clips a point (default %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 250], help="(default %(default)s)")
    parser.add_argument("--solvers", nargs="+", choices=tuple(SOLVERS), default=list(SOLVERS), help="(default all)")
    parser.add_argument("--weight", type=float, nargs="+", default=[1.0, 3.0], help="as of evaluate.py")
    parser.add_argument("--audio-weight", type=float, nargs="+", help="that of the sound, where it is another")
    parser.add_argument(
        "--fine", type=float, nargs=2, metavar=("LOW", "HIGH"), help=f"noise levels with steps as short as of {FINE}"
    )
    script.add_climb(parser, CLIMB)
    parser.add_argument("--run", type=Path, default=checkpoint.PRETRAINED, help="with model.pt, video.pt, audio.pt")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the held-out clips and of the samples")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/steps"))
    args = script.parse_options(parser, argv)
    guidance = [args.weight, args.audio_weight or args.weight]
    if args.n < 2 or min(args.steps) < 1 or max(map(len, guidance)) > 3:
        parser.error("--n must be at least 2, --steps at least 1, and weights one to three numbers")
    if args.fine and not 0 <= args.fine[0] < args.fine[1]:
        parser.error("--fine needs two noise levels, the lower one first")
    about, systems, path = {"n": args.n, "seed": args.seed, "weights": digest(args.run)}, {}, args.out / "report.json"
    if path.exists():
        kept = json.loads(path.read_text())
        if any(kept.get(key) != value for key, value in about.items()):
            parser.error(f"{args.out} holds rows for another --n, --seed or other weights: name another --out")
        systems = kept["systems"]

    models = checkpoint.load_run(args.run, args.device)
    world = Xylophone(models[2].video_shape[-1])
    real, reference = held_out(world, args.n, args.seed)
    known = {"real": (*real, None), "shuffled": (real[0], real[1].roll(1, 0), None)}
    weights = [by_noise_level(*w) for w in guidance]
    said = " / ".join(" ".join(f"{w:g}" for w in weight) for weight in guidance[: 2 if args.audio_weight else 1])
    if args.climb:
        said += f", climb {args.climb:g}"
    if args.fine:
        said += f", {FINE} for t in ({args.fine[0]:g}, {args.fine[1]:g}]"
    for solver in args.solvers:
        for steps in args.steps:
            name = f"{solver} {steps}, {said}"
            if name in systems:
                print(f"{name}: the row that {path} holds")
                continue
            how = {"sde": models[0].sde, "climb_below": args.climb}
            grid = refined(steps, *args.fine, **how) if args.fine else time_grid(steps, **how)
            options = {"solver": solver, "steps": len(grid) - 1, "grid": grid, "climb_below": args.climb}
            options |= {"weight": lambda t: tuple(w(t)[k] for k, w in enumerate(weights)), "device": args.device}
            draw = partial(sample, *models, **options)
            clips = {name: generate(draw, [x.shape[1:] for x in real], args.seed, args.n, name)}
            systems |= compare(known | clips, reference, world)[0]
            systems[name] |= {"line": f"{solver}, {said}", "calls": 3 * (len(grid) - 1)}
            save_report(args, {**about, "systems": systems})  # after each point: all of them take hours
    points = [row for row in systems.values() if "line" in row]
    calls = sorted({row["calls"] for row in points})
    lines = {row["line"]: [None] * len(calls) for row in points}
    for row in points:
        lines[row["line"]][calls.index(row["calls"])] = row["alignment"]
    figure = figures.draw_lines(calls, lines, "network calls", "alignment")
    figure.axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8)  # above, where no line is
    figure.tight_layout()
    figures.save_figure(args.out / "steps.png", figure)
    print_table(systems, ["alignment", "hit_f1", "pitch_accuracy", "onset_error_ms", "video_frechet", "audio_frechet"])
    print(f"report.json and steps.png are in {args.out}")


if __name__ == "__main__":
    script.run_main(main)
