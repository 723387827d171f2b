"""Alignment and fidelity of every system, in one table.

    python evaluate.py                      the shipped weights, 512 clips a system
    python evaluate.py --run runs/mine      a discriminator of your own

real         held-out pairs of the world                shuffled     the same, sound and picture of different clips
independent  the two base models, each on its own       guided       the same with the discriminator's gradient

    alignment = (hit_f1 * pitch_accuracy - that of shuffled) / (that of real - that of shuffled)       0 chance, 1 real

Hits come from the detectors of hits.py. The Frechet distance, |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), is to other
held-out real clips in the features of a fixed random network. Below, by noise level on held-out real pairs: how well
real and shuffled are told apart, and what the residual explains of the noise eps - eps_base that the base models leave.
"""

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint
import figures
import hits
import media
from clips import ClipFolder
from data import Xylophone
from discriminator import perturb_pairs, residual_noise
from files import run_main, save_json
from guidance import SOLVERS, early_and_late, sample

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
INFORMATION_LEVEL = 0.05  # the noise level at which mutual information is read off: the clips carry no grain this fine
MODALITIES, BATCH = ("video", "audio"), 64


class RandomFeatures(nn.Module):
    """A fixed-seed random convolutional network: clips (B, C, ...) -> means and spreads of 64 channels (B, 128)."""

    def __init__(self, channels: int, dims: int):
        super().__init__()
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(
                conv(channels, 32, 4, 2), nn.SiLU(), conv(32, 64, 4, 2), nn.SiLU(), conv(64, 64, 2)
            )
            for layer in self.net[::2]:
                nn.init.kaiming_normal_(layer.weight)  # keeps the features' scale from layer to layer
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.net(part).flatten(2) for part in x.split(BATCH)])
        return torch.cat([h.mean(2), h.std(2)], dim=1).double()


def frechet(x: Tensor, y: Tensor) -> float:
    """Frechet distance between Gaussians fitted to features x (n, D) and y (m, D)."""
    S1, S2 = x.T.cov(), y.T.cov()
    values, vectors = torch.linalg.eigh(S1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ S2 @ root).clamp(min=0).sqrt().sum()
    return ((x.mean(0) - y.mean(0)).square().sum() + S1.trace() + S2.trace() - 2 * cross).item()


def generate(models: tuple, shapes: tuple, args: argparse.Namespace, weight, name: str) -> tuple:
    """n clips, video as a file holds it (8 bits a channel) and audio, and the seconds that one took."""
    start, parts, generator = time.time(), [], torch.Generator().manual_seed(args.seed)
    for first in tqdm(range(0, args.n, BATCH), desc=name):
        sizes = [(min(BATCH, args.n - first), *shape) for shape in shapes]
        clips = sample(*models, *sizes, args.steps, weight, args.solver, generator, device=args.device)
        parts.append([x.cpu() for x in clips])
    video, audio = (torch.cat(x) for x in zip(*parts, strict=True))
    return media.to_video(media.to_frames(video)), audio, (time.time() - start) / args.n


def by_level(models: tuple, real: tuple[Tensor, Tensor], seed: int, device: str) -> list[dict[str, float]]:
    """Per noise level, on real pairs: accuracy, mean logits, and what the residual explains in each modality."""
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
            residual = residual_noise(pair + discriminator.repairs(v, a).sum(0), vt, at, t, video_model.sde)
            with torch.no_grad():
                shuffled = discriminator.pair(v, a.roll(1, 0), t)
            row = {"accuracy": ((pair > 0).float() + (shuffled <= 0).float()) / 2, "pair_real": pair}
            row["bce"] = F.softplus(-pair) + F.softplus(shuffled)
            for name, m, r in zip(MODALITIES, noisy.missing, residual, strict=True):
                products = {"mm": m * m, "mr": m * r, "rr": r * r}
                row |= {f"{name}_{key}": value.flatten(1).sum(1) for key, value in products.items()}
            for key, value in row.items():
                totals.setdefault(key, []).append(value.detach())
        out = {"t": level, **{key: torch.cat(value).mean().item() for key, value in totals.items()}}
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
    parser.add_argument("--weight", type=float, nargs="+", default=[1.0, 4.0], help="one, or for large and small t")
    parser.add_argument("--run", type=Path, default=checkpoint.PRETRAINED, help="with model.pt, video.pt, audio.pt")
    parser.add_argument("--data", default="xylophone", help="xylophone, or a folder of clips (fidelity only, no hits)")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the held-out clips and of the samples")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"))
    args = parser.parse_args(argv)
    if args.n < 2 or args.steps < 1 or len(args.weight) > 2:
        parser.error("--n must be at least 2, --steps at least 1, and --weight one number or two")

    models = checkpoint.load_run(args.run, args.device)
    world = Xylophone() if args.data == "xylophone" else ClipFolder(Path(args.data))
    video, audio = world.batch(args.n, torch.Generator().manual_seed(args.seed))
    reference = world.batch(max(args.n, 1024), torch.Generator().manual_seed(args.seed + 1))
    shapes = video.shape[1:], audio.shape[1:]
    clips = {
        "real": (video, audio, None),
        "shuffled": (video, audio.roll(1, 0), None),
        "independent": generate(models, shapes, args, 0.0, "independent"),
        "guided": generate(models, shapes, args, early_and_late(args.weight[0], args.weight[-1]), "guided"),
    }
    features = RandomFeatures(3, 3), RandomFeatures(1, 2)
    truth = [net(x) for net, x in zip(features, reference, strict=True)]
    systems = {}
    for name, (v, a, seconds) in clips.items():
        row = {"hit_f1": None, "pitch_accuracy": None, "alignment": None, "onset_error_ms": None}
        if args.data == "xylophone":
            row |= hits.agreement(hits.see(v), hits.hear(a), within=1 / world.fps)
        video_d, audio_d = (frechet(net(x), y) for net, x, y in zip(features, (v, a), truth, strict=True))
        systems[name] = row | {"video_frechet": video_d, "audio_frechet": audio_d, "seconds_per_clip": seconds}
    if args.data == "xylophone":
        product = {name: row["hit_f1"] * row["pitch_accuracy"] for name, row in systems.items()}
        for name, row in systems.items():
            row["alignment"] = (product[name] - product["shuffled"]) / (product["real"] - product["shuffled"])
    levels = by_level(models, (video, audio), args.seed, args.device)
    count = [sum(p.numel() for p in model.parameters()) for model in models]
    report = {
        **{key: getattr(args, key) for key in ("n", "steps", "solver", "weight", "seed")},
        "systems": systems,
        "parameters": dict(zip((*MODALITIES, "discriminator"), count, strict=True)),
        "mutual_information_nats": next(row["pair_real"] for row in levels if row["t"] == INFORMATION_LEVEL),
        "levels": levels,
    }
    save_json(args.out / "report.json", report)
    for name in ("guided", "independent"):
        v, a, titles = clips[name][0][:8], clips[name][1][:8], [f"{name} {k}" for k in range(8)]
        figures.save_sheet(args.out / f"{name}.png", v, a, titles)
    print_table(report)
    print(f"report.json, guided.png and independent.png are in {args.out}")


def print_table(report: dict) -> None:
    columns = list(report["systems"]["real"])
    print(f"{'':12}" + "".join(f"{name:>16}" for name in columns))
    for system, row in report["systems"].items():
        print(f"{system:12}" + "".join(" " * 16 if row[c] is None else f"{row[c]:16.4f}" for c in columns))
    columns = ["t", "accuracy", "bce", "pair_real", *(f"{m}_{k}" for k in ("explained", "cosine") for m in MODALITIES)]
    print("".join(f"{name:>16}" for name in columns))
    for row in report["levels"]:
        print("".join(f"{row[c]:16.4f}" for c in columns))
    nats = report["mutual_information_nats"]
    print(f"parameters {report['parameters']}; mutual information {nats:.2f} nats at t = {INFORMATION_LEVEL}")


if __name__ == "__main__":
    run_main(main)
