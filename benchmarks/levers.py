"""What each choice in the training of the discriminator is worth: runs that differ from the first in one thing.

    python benchmarks/levers.py                          every row: about 25 minutes each on one core
    python benchmarks/levers.py --rows "width 48"        some of them; rows made before are kept and shown again

Each choice is a run of train.py in runs/levers/ROW, judged as in evaluate.py at two pairs of weights: the less a
discriminator knows, the larger the weight it wants. "without EMA" is the first run again, by its last weights in place
of their moving average.
"""

import sys  # isort: skip
from pathlib import Path  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules it shares
import script  # isort: skip, before what takes seconds to import

import argparse
import contextlib
import json
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import checkpoint
import objective
import train
from data import Xylophone
from discriminator import JointDiscriminator, discriminator_loss
from evaluate import compare, held_out, print_table
from files import save_json
from guidance import by_noise_level, sample
from information import by_level
from many import generate
from pairs import Noisy, both, shuffled
from score import VPSDE, expand

WEIGHTS = ((1.0, 5.0), (1.5, 9.0))
SHOWN = (0.3, 0.5, 0.7)  # noise levels whose explained noise is printed


def uniform_t(u: Tensor, sde: VPSDE) -> Tensor:
    return sde.t_min + (1 - sde.t_min) * u


def uniform_log_snr(u: Tensor, sde: VPSDE) -> Tensor:
    first, last = sde.log_snr(torch.tensor([sde.t_min, 1.0], dtype=torch.float64))
    return sde.time_at(torch.lerp(first, last, u.double())).float().clamp(sde.t_min, 1)


def network(**options) -> contextlib.AbstractContextManager:
    return mock.patch.dict(checkpoint.NETWORKS, discriminator=partial(JointDiscriminator, **options))


def levels(sampling) -> contextlib.AbstractContextManager:
    return mock.patch.object(objective, "logit_normal", sampling)


def equal_levels() -> contextlib.AbstractContextManager:
    return mock.patch.object(objective, "joint_and_conditional", lambda t, *_: (t, t))


def consistency(discriminator: nn.Module, sde: VPSDE, real: Noisy, group: int) -> Tensor:
    """Cross-entropy (B,) of D at a noisier level u against what D itself says, at t, of the same real and fake pairs.

    Noise carries every pair on alike, real or not, so that D_u(x_u) = E[D_t(x_t) | x_u]:
    x_u = a x_t + (sigma_u^2 - a^2 sigma_t^2)^(1/2) z,   a = alpha_u / alpha_t.   What counts as clean stays so.
    """
    further = objective.logit_normal(torch.rand(len(real.vt) // group), sde).repeat_interleave(group)
    states, levels = [], []
    for x, t in zip((real.vt, real.at), both(real.t), strict=True):
        u = torch.where(t > sde.t_min, torch.maximum(t, further), t)
        (alpha, sigma), (alpha_u, sigma_u) = sde.marginal(t), sde.marginal(u)
        a = alpha_u / alpha
        fresh = (sigma_u**2 - a**2 * sigma**2).clamp_min(0).sqrt()
        states.append(expand(a, x) * x + expand(fresh, x) * torch.randn_like(x))
        levels.append(u)

    def pair_terms(states: tuple[Tensor, ...], t: tuple[Tensor, ...]) -> Tensor:
        v, a = discriminator.encode(*states, t)
        return torch.stack([discriminator.pair(v, shuffled(a, k, group), t) for k in range(2)])  # real and one fake

    with torch.no_grad():
        target = pair_terms((real.vt, real.at), both(real.t)).sigmoid()
    return F.binary_cross_entropy_with_logits(pair_terms(states, tuple(levels)), target, reduction="none").sum(0)


def self_consistent_loss(network: nn.Module, sde: VPSDE, real: Noisy, bce_weight: float, *others) -> tuple:
    loss, parts = discriminator_loss(network, sde, real, bce_weight, *others)
    return loss + bce_weight * consistency(network, sde, real, objective.GROUP).mean(), parts


def self_consistent() -> contextlib.AbstractContextManager:
    return mock.patch.object(objective, "discriminator_loss", self_consistent_loss)


ROWS = {  # options of train.py, and what else is another
    "as shipped": ([], contextlib.nullcontext),
    "bce weight 1": (["--bce-weight", "1"], contextlib.nullcontext),
    "bce weight 10": (["--bce-weight", "10"], contextlib.nullcontext),
    "equal levels": ([], equal_levels),
    "self-consistency": ([], self_consistent),
    "generated fakes": (["--fakes", "generated"], contextlib.nullcontext),
    "uniform t": ([], partial(levels, uniform_t)),
    "uniform log-SNR": ([], partial(levels, uniform_log_snr)),
    "width 48": ([], partial(network, width=48)),
    "width 144": ([], partial(network, width=144)),
    "fusion 1 block": ([], partial(network, fusion=(1,))),
    "fusion 6 blocks": ([], partial(network, fusion=(1, 2, 4, 1, 2, 4))),
    "32 filters": ([], partial(network, filters=(48, 32))),
}


def judge(name: str, models: tuple, n: int, seed: int) -> dict[str, dict[str, float]]:
    """A row for each of WEIGHTS: the system guided by models[2], with real and shuffled pairs as its scale."""
    world = Xylophone()
    real, reference = held_out(world, n, seed)
    clips = {"real": (*real, None), "shuffled": (real[0], real[1].roll(1, 0), None)}
    for weight in WEIGHTS:
        draw, row = partial(sample, *models, weight=by_noise_level(*weight)), f"{name}, {weight[0]:g} {weight[1]:g}"
        clips[row] = generate(draw, [x.shape[1:] for x in real], seed, n, row)
    levels = {f"explained {r['t']}": r["audio_explained"] for r in by_level(models, real, seed, "cpu")}
    explained = {key: levels[key] for key in (f"explained {t}" for t in SHOWN)}
    return {row: x | explained for row, x in compare(clips, reference, world)[0].items() if row.startswith(name)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=list(ROWS), help="(default all)")
    parser.add_argument("--steps", type=int, default=2000, help="of training (default %(default)s)")
    parser.add_argument("--n", type=int, default=512, help="clips a row (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the held-out clips and of the samples")
    parser.add_argument("--out", type=Path, default=Path("runs/levers"))
    args = script.parse_options(parser, argv)
    for name in args.rows:
        run = args.out / name.replace(" ", "-")
        if (run / "row.json").exists():
            continue
        options, changed = ROWS[name]
        with changed():
            train.train(train.parse([*options, "--steps", str(args.steps), "--out", str(run)]))
            models = checkpoint.load_run(run)
        rows = judge(name, models, args.n, args.seed)
        if name == "as shipped":
            models[2].load_state_dict(checkpoint.load(run / "last.pt")["model"])
            rows |= judge("without EMA", models, args.n, args.seed)
        save_json(run / "row.json", rows)
    rows = {}
    for path in sorted(args.out.glob("*/row.json")):
        rows |= json.loads(path.read_text())
    shown = [
        "alignment",
        "hit_f1",
        "onset_error_ms",
        "seen_per_clip",
        "heard_per_clip",
        "video_frechet",
        "audio_frechet",
    ]
    print_table(rows, [*shown, *(f"explained {t}" for t in SHOWN)])


if __name__ == "__main__":
    script.run_main(main)
