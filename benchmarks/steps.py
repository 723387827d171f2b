"""Alignment and fidelity of guided clips against the number of solver steps, for every solver: a table and a figure.

    python benchmarks/steps.py                              the shipped weights
    python benchmarks/steps.py --steps 10 20 --n 2000       fewer points, more clips

A step calls both base models and the discriminator once each. Alignment as in evaluate.py, on clips of its own.
"""

import sys  # isort: skip
from pathlib import Path  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules it shares
import script  # isort: skip, before what takes seconds to import

import argparse
from functools import partial

import torch

import checkpoint
import figures
from data import Xylophone
from evaluate import compare, held_out, print_table
from guidance import SOLVERS, by_noise_level, sample
from manifest import save_report
from many import generate


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=256, help="clips a point (default %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 250], help="(default %(default)s)")
    parser.add_argument("--solvers", nargs="+", choices=tuple(SOLVERS), default=list(SOLVERS), help="(default all)")
    parser.add_argument(
        "--weight", type=float, nargs="+", default=[1.0, 3.0], help="one, or for t > 0.6, t > 0.1 and the rest"
    )
    parser.add_argument("--run", type=Path, default=checkpoint.PRETRAINED, help="with model.pt, video.pt, audio.pt")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the held-out clips and of the samples")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/steps"))
    args = script.parse_options(parser, argv)
    if args.n < 2 or min(args.steps) < 1 or len(args.weight) > 3:
        parser.error("--n must be at least 2, --steps at least 1, and --weight one to three numbers")

    models = checkpoint.load_run(args.run, args.device)
    world = Xylophone(models[2].video_shape[-1])
    real, reference = held_out(world, args.n, args.seed)
    known = {"real": (*real, None), "shuffled": (real[0], real[1].roll(1, 0), None)}
    weight, systems, lines = by_noise_level(*args.weight), {}, {}
    for solver in args.solvers:
        for steps in args.steps:
            draw = partial(sample, *models, steps=steps, weight=weight, solver=solver, device=args.device)
            name = f"{solver} {steps}"
            clips = {name: generate(draw, [x.shape[1:] for x in real], args.seed, args.n, name)}
            systems |= compare(known | clips, reference, world)[0]
            report = {"n": args.n, "seed": args.seed, "weight": args.weight, "systems": systems}
            save_report(args, report)  # after each point: all of them take an hour
        lines[solver] = [systems[f"{solver} {k}"]["alignment"] for k in args.steps]
    calls = [3 * k for k in args.steps]
    figures.save_figure(args.out / "steps.png", figures.draw_lines(calls, lines, "network calls", "alignment"))
    print_table(systems, ["alignment", "hit_f1", "pitch_accuracy", "onset_error_ms", "video_frechet", "audio_frechet"])
    print(f"report.json and steps.png are in {args.out}")


if __name__ == "__main__":
    script.run_main(main)
