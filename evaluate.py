"""Alignment and fidelity of every system, in one table.

    python evaluate.py                      the shipped weights, 512 clips a system
    python evaluate.py --run runs/mine      a discriminator of your own

real         held-out pairs of the world                shuffled     the same, sound and picture of different clips
independent  the two base models, each on its own       guided       the same with the discriminator's gradient
joint        one model of both, of train.py joint

    alignment = (hit_f1 * pitch_accuracy - that of shuffled) / (that of real - that of shuffled)       0 chance, 1 real

Hits come from the detectors of hits.py; fidelity to other held-out real clips, and diversity, are those of fidelity.py.
Below, by noise level on held-out real pairs: how well real and shuffled are told apart, and what the residual explains
of the noise eps - eps_base that the base models leave.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import checkpoint
import figures
import hits
import media
from clips import open_world
from data import Xylophone
from discriminator import perturb_pairs, residual_noise
from fidelity import RandomFeatures, frechet, statistics
from files import run_main, save_json
from guidance import SOLVERS, by_noise_level, draw, sample, unguided_eps

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
INFORMATION_LEVEL = 0.05  # the noise level at which mutual information is read off: the clips carry no grain this fine
MODALITIES, BATCH = ("video", "audio"), 64
REFERENCE = 1024  # clips, at least, that a system is compared with


def generate(draw_clips: Callable[..., tuple], shapes: list, seed: int, n: int, name: str) -> tuple:
    """n clips, video as a file holds it (8 bits a channel) and audio, and the seconds that one took."""
    start, parts, generator = time.time(), [], torch.Generator().manual_seed(seed)
    for first in tqdm(range(0, n, BATCH), desc=name):
        clips = draw_clips(*((min(BATCH, n - first), *shape) for shape in shapes), generator=generator)
        parts.append([x.cpu() for x in clips])
    video, audio = (torch.cat(x) for x in zip(*parts, strict=True))
    return media.to_video(media.to_frames(video)), audio, (time.time() - start) / n


def held_out(world, n: int, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """n real pairs, and others that all systems are compared with."""
    generators = (torch.Generator().manual_seed(seed + k) for k in range(2))
    return tuple(world.batch(size, g) for size, g in zip((n, max(n, REFERENCE)), generators, strict=True))


def compare(clips: dict[str, tuple], reference: tuple[Tensor, Tensor], world: Xylophone | None) -> tuple[dict, dict]:
    """The table's row for each system's (video, audio, seconds per clip), and the hits found in its clips.

    Without a world (clips of a folder) there are no hits to be found, and Frechet distances alone.
    """
    features = RandomFeatures(3, 3), RandomFeatures(1, 2)
    truth = [net(x) for net, x in zip(features, reference, strict=True)]
    systems, found = {}, {}
    for name, (video, audio, seconds) in clips.items():
        row = {"hit_f1": None, "pitch_accuracy": None, "alignment": None, "onset_error_ms": None}
        if world:
            found[name] = {"video": video, "audio": audio, "seen": hits.see(video), "heard": hits.hear(audio)}
            row |= hits.agreement(found[name]["seen"], found[name]["heard"])
        distances = [frechet(net(x), y) for net, x, y in zip(features, (video, audio), truth, strict=True)]
        row |= {f"{modality}_frechet": d for modality, d in zip(MODALITIES, distances, strict=True)}
        systems[name] = row | {"seconds_per_clip": seconds}
    if world:
        product = {name: row["hit_f1"] * row["pitch_accuracy"] for name, row in systems.items()}
        for name, row in systems.items():
            row["alignment"] = (product[name] - product["shuffled"]) / (product["real"] - product["shuffled"])
    return systems, found


def physics(found: dict[str, dict], reference: tuple[Tensor, Tensor], world: Xylophone) -> dict[str, dict]:
    """fidelity.statistics of each system against other real clips and against clips that train.py drew at --seed 0."""
    training = [world.batch(32, torch.Generator().manual_seed(k)) for k in range(REFERENCE // 32)]
    training = tuple(torch.cat(x) for x in zip(*training, strict=True))
    other = {"video": reference[0], "audio": reference[1]}
    other |= {"seen": hits.see(reference[0]), "heard": hits.hear(reference[1])}
    return {name: statistics(x, other, training, world.fps) for name, x in found.items() if name != "shuffled"}


def calibration_error(real: Tensor, fake: Tensor, bins: int = 10) -> float:
    """Expected calibration error of D = sigmoid(logit): in each tenth of D, |mean D - share of real|, by its share."""
    d, label = torch.sigmoid(torch.cat([real, fake])), torch.cat([torch.ones_like(real), torch.zeros_like(fake)])
    gaps = torch.zeros(bins).to(d).index_add(0, (bins * d).long().clamp(max=bins - 1), d - label)
    return (gaps.abs().sum() / len(d)).item()


def by_level(models: tuple, real: tuple[Tensor, Tensor], seed: int, device: str) -> list[dict[str, float]]:
    """Per noise level, on real pairs: accuracy, calibration, mean logits, and what the residual explains."""
    video_model, audio_model, discriminator = models
    rows, generator = [], torch.Generator().manual_seed(seed)
    for level in tqdm(LEVELS, desc="noise levels"):
        totals = {}
        for pairs in zip(*(x.to(device).split(BATCH) for x in real), strict=True):
            t = torch.full((len(pairs[0]),), level, device=device)
            noisy = perturb_pairs(video_model, audio_model, pairs, t, generator)
            vt, at = noisy.vt.requires_grad_(), noisy.at.requires_grad_()
            v, a = discriminator.encode(vt, at, t)
            pair = discriminator.pair(v, a, t)
            residual = residual_noise(pair + discriminator.repair(v, a), vt, at, t, video_model.sde)
            with torch.no_grad():
                shuffled = discriminator.pair(v, a.roll(1, 0), t)
            row = {"accuracy": ((pair > 0).float() + (shuffled <= 0).float()) / 2, "pair_real": pair}
            row |= {"pair_shuffled": shuffled, "bce": F.softplus(-pair) + F.softplus(shuffled)}
            for name, m, r in zip(MODALITIES, noisy.missing, residual, strict=True):
                products = {"mm": m * m, "mr": m * r, "rr": r * r}
                row |= {f"{name}_{key}": value.flatten(1).sum(1) for key, value in products.items()}
            for key, value in row.items():
                totals.setdefault(key, []).append(value.detach())
        totals = {key: torch.cat(value) for key, value in totals.items()}
        out = {"t": level, **{key: value.mean().item() for key, value in totals.items()}}
        out["calibration_error"] = calibration_error(totals["pair_real"], totals["pair_shuffled"])
        for name in MODALITIES:
            mm, mr, rr = (out.pop(f"{name}_{key}") for key in ("mm", "mr", "rr"))
            out |= {f"{name}_noise_base": mm, f"{name}_noise": mm - 2 * mr + rr}
            out |= {f"{name}_explained": (2 * mr - rr) / mm, f"{name}_cosine": mr / math.sqrt(mm * rr + 1e-30)}
        rows.append(out)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=512, help="clips a system (default %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="solver steps (default %(default)s)")
    parser.add_argument("--solver", choices=tuple(SOLVERS), default="dpm++2m-sde", help="(default %(default)s)")
    parser.add_argument(
        "--weight", type=float, nargs="+", default=[1.0, 5.0], help="one, or for t > 0.6, t > 0.1 and the rest"
    )
    parser.add_argument("--run", type=Path, default=checkpoint.PRETRAINED, help="with model.pt, video.pt, audio.pt")
    parser.add_argument("--joint", type=Path, metavar="RUN", help="a run of train.py joint, to compare with")
    parser.add_argument("--data", default="xylophone", help="xylophone, or a folder of clips (fidelity only, no hits)")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the held-out clips and of the samples")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"))
    args = parser.parse_args(argv)
    if args.n < 2 or args.steps < 1 or len(args.weight) > 3:
        parser.error("--n must be at least 2, --steps at least 1, and --weight one to three numbers")

    models = checkpoint.load_run(args.run, args.device)
    named = dict(zip((*MODALITIES, "discriminator"), models, strict=True))
    world = open_world(args.data, named["discriminator"].size)
    real, reference = held_out(world, args.n, args.seed)
    solver = {"steps": args.steps, "solver": args.solver, "device": args.device}
    draws = {
        name: partial(sample, *models, weight=weight, **solver)
        for name, weight in (("independent", 0.0), ("guided", by_noise_level(*args.weight)))
    }
    if args.joint:
        sde, named["joint"] = models[0].sde, checkpoint.load_network(args.joint / "model.pt", "joint", args.device)
        eps_model = unguided_eps(named["joint"], sde)
        draws["joint"] = lambda *shapes, generator: draw(eps_model, shapes, sde, generator=generator, **solver)
    clips = {"real": (*real, None), "shuffled": (real[0], real[1].roll(1, 0), None)}
    for name, draw_clips in draws.items():
        clips[name] = generate(draw_clips, [x.shape[1:] for x in real], args.seed, args.n, name)

    systems, found = compare(clips, reference, world if args.data == "xylophone" else None)
    levels = by_level(models, real, args.seed, args.device)
    report = {
        **{key: getattr(args, key) for key in ("n", "steps", "solver", "weight", "seed")},
        "systems": systems,
        "statistics": physics(found, reference, world) if found else {},
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in named.items()},
        "mutual_information_nats": next(row["pair_real"] for row in levels if row["t"] == INFORMATION_LEVEL),
        "levels": levels,
    }
    save_json(args.out / "report.json", report)
    for name in draws:
        video, audio, _ = clips[name]
        figures.save_sheet(args.out / f"{name}.png", video[:8], audio[:8], [f"{name} {k}" for k in range(8)])
    print_report(report)
    print(f"report.json and {', '.join(f'{name}.png' for name in draws)} are in {args.out}")


def print_table(rows: dict[str, dict], columns: list[str]) -> None:
    print(f"{'':16}" + "".join(f"{name:>24}" for name in columns))
    for name, row in rows.items():
        print(f"{name:16}" + "".join(" " * 24 if row[c] is None else f"{row[c]:24.4f}" for c in columns))


def print_report(report: dict) -> None:
    print_table(report["systems"], list(report["systems"]["real"]))
    if report["statistics"]:
        print_table(report["statistics"], list(report["statistics"]["real"]))
    columns = [
        "accuracy",
        "calibration_error",
        "bce",
        "pair_real",
        *(f"{m}_{k}" for k in ("explained", "cosine") for m in MODALITIES),
    ]
    print_table({f"t = {row['t']}": row for row in report["levels"]}, columns)
    nats = report["mutual_information_nats"]
    print(f"parameters {report['parameters']}; mutual information {nats:.2f} nats at t = {INFORMATION_LEVEL}")


if __name__ == "__main__":
    run_main(main)
