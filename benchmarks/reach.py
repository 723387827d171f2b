"""How far the discriminator reaches: what of a picture's noise the residual explains, by frames before the first hit.

    python benchmarks/reach.py                    the shipped weights, a minute on two cores
    python benchmarks/reach.py --run runs/mine    other weights

Until its first impact a ball hangs, and then falls, above the one bar that will be heard. All those frames are of one
place, and so a note tells as much of the first as of the last. In real pairs whose first impact is late, with missing =
eps - eps_base and r the residual noise of discriminator.py, for each number of frames before that impact

    explained = 1 - sum |missing - r|^2 / sum |missing|^2        below 0 r is worse than nothing
    length    = sum |r|^2 / sum |missing|^2                      as long as explained, if r = E[missing | v_t, a_t]

Where length is above explained r is partly noise, of which guidance by w makes w^2 as much.
"""

import sys  # isort: skip
from pathlib import Path  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules it shares
import script  # isort: skip, before what takes seconds to import

import argparse

import torch
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint
import media
from data import Xylophone
from discriminator import residual_noise
from manifest import save_report
from pairs import perturb_pairs
from score import FrozenModel
from seeds import stream

LEVELS = (0.4, 0.5, 0.6, 0.7, 0.8)
LATE = (0.65, 0.875)  # of a clip, when it has its first impact
PART = 64  # clips that are asked about at a time


def late_pairs(world: Xylophone, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """n real pairs (n, ...) with a LATE first impact, and its frame (n,), as a fraction."""
    found, generator = [], stream(seed, 0)
    while len(found) < n:
        frames, waveforms, hits = world.render(PART, generator)
        pairs = zip(media.to_video(frames), media.log_mel(waveforms), hits, strict=True)
        within = [(*pair, clip[0][0] / world.seconds) for *pair, clip in pairs if clip]
        found += [pair for pair in within if LATE[0] < pair[2] < LATE[1]]
    video, audio, first = zip(*found[:n], strict=True)
    return torch.stack(video), torch.stack(audio), torch.tensor(first) * world.frames


def explained(
    models: tuple[FrozenModel, FrozenModel, nn.Module],
    pairs: tuple[Tensor, Tensor],
    first: Tensor,
    t: Tensor,
    seed: int,
) -> dict[str, list[float]]:
    """explained and length, of the frames 0, 1, ... whole frames before the first impact, of pairs at levels t (n,)."""
    before = first[:, None].floor() - torch.arange(pairs[0].shape[2])  # (n, T), -1 and less after it
    total = torch.zeros(3, int(before.max()) + 1, dtype=torch.float64)
    for k in range(0, len(t), PART):
        part, device = slice(k, k + PART), t.device
        noisy = perturb_pairs(*models[:2], tuple(x[part].to(device) for x in pairs), t[part], stream(seed, 1 + k))
        vt, at = (x.requires_grad_() for x in (noisy.vt, noisy.at))
        r, _ = residual_noise(models[2](vt, at, t[part]), vt, at, t[part], models[0].sde)
        missing, there = noisy.missing[0], before[part] >= 0
        for sums, x in zip(total, (missing, missing - r, r), strict=True):
            energy = x.square().sum((1, 3, 4)).cpu().double()  # (B, T)
            sums.index_add_(0, before[part][there].long(), energy[there])
    missing, left, length = total
    return {"explained": (1 - left / missing).tolist(), "length": (length / missing).tolist()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=512, help="pairs (default %(default)s)")
    parser.add_argument("--run", type=Path, default=checkpoint.PRETRAINED, help="with model.pt, video.pt, audio.pt")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the held-out pairs and of the noise")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/reach"))
    args = script.parse_options(parser, argv)
    if args.n < 1:
        parser.error("--n must be at least 1")

    models = checkpoint.load_run(args.run, args.device)
    *pairs, first = late_pairs(Xylophone(models[2].video_shape[-1]), args.n, args.seed)
    levels = {level: torch.full((args.n,), level, device=args.device) for level in LEVELS}
    rows = {level: explained(models, pairs, first, t, args.seed) for level, t in tqdm(levels.items(), desc="levels")}
    save_report(args, {"n": args.n, "seed": args.seed, "levels": rows})
    print("frames before the first hit" + "".join(f"{k:8}" for k in range(len(rows[LEVELS[0]]["length"]))))
    for level, row in rows.items():
        for name, shares in row.items():
            print(f"t = {level:g}, {name:18}" + "".join(f"{share:8.3f}" for share in shares))
    print(f"report.json is in {args.out}")


if __name__ == "__main__":
    script.run_main(main)
