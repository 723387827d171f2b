"""Train a base model or the discriminator.

    python train.py video --minutes 60            a base model, on one modality alone
    python train.py audio --minutes 60
    python train.py                               the discriminator, on the two shipped base models
    python train.py discriminator --data FOLDER   the same on a folder of your own clips
    python train.py --resume runs/discriminator   go on where a run stopped (Ctrl-C saves)

Base models minimise |x0_hat(x_t, t) - x_0|^2 / sigma_t^2; the discriminator minimises discriminator_loss
(discriminator.py), first its cross-entropy alone, which is cheap and finds the pairing, then with the noise loss,
which makes its gradient right.
"""

import argparse
import math
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint
import figures
from data import Xylophone
from discriminator import discriminator_loss
from files import run_main, save_json
from guidance import denoise, sample
from score import VPSDE, FrozenModel

DEFAULTS = {  # what was used for the shipped weights, on 2 cores
    "video": {"minutes": 75.0, "batch": 32, "lr": 1e-3},
    "audio": {"minutes": 75.0, "batch": 32, "lr": 1e-3},
    "discriminator": {"minutes": 18.0, "batch": 32, "lr": 1e-3},
}
LEVELS = 10  # noise-level bins of the report
LEVEL_MEAN, LEVEL_SPREAD = 0.0, 0.9  # of logit t, where the discriminator trains
GROUP = 4  # clips that share a noise level: each is told from the three others
FAKES = 1024  # pairs drawn from the base models for --fakes generated


def levels(n: int, sde: VPSDE, generator: torch.Generator) -> Tensor:
    """n noise levels, one from each of n equal parts of [t_min, 1]: uniform, with less variance than n free draws."""
    u = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return sde.t_min + (1 - sde.t_min) * u


def discriminator_levels(n: int, sde: VPSDE, generator: torch.Generator) -> Tensor:
    """n noise levels for the discriminator, logit-normal: nine in ten between 0.2 and 0.8, where hits are decided.

    Below, the clips are settled; above, there is nothing to tell. Stratified like `levels`.
    """
    u = (levels(n, sde, generator) - sde.t_min) / (1 - sde.t_min)
    return torch.sigmoid(LEVEL_MEAN + LEVEL_SPREAD * torch.special.ndtri(u.double())).float().clamp(sde.t_min, 1)


def base_loss(network: nn.Module, sde: VPSDE, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, dict, Tensor]:
    """E |x0_hat(x_t, t) - x_0|^2 / sigma_t^2, a mean over elements; returns loss, parts per sample and t (B,).

    The weight makes it the error of v = alpha_t eps - sigma_t x_0 (Salimans & Ho 2022, 2202.00512): neither the fine
    detail at small t nor the layout at large t, where it is decided when hits happen, is drowned by the other.
    """
    t = levels(len(x0), sde, generator).to(x0.device)
    eps = torch.randn(x0.shape, generator=generator).to(x0.device)
    with mixed_precision(x0.device):
        x0_hat = network(sde.perturb(x0, t, eps), t)
    error = (x0_hat - x0).square().flatten(1).mean(1) / sde.marginal(t)[1] ** 2
    return error.mean(), {"v_error": error.detach()}, t


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 autocast where the hardware multiplies it: GPUs, and CPUs with AVX-512 BF16 (1.5 times faster there)."""
    fast = device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


class Fast(nn.Module):
    """A frozen network in mixed precision, for training only: its error is far below the base model's own."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        with mixed_precision(xt.device):
            return self.network(xt, t)


class Interrupt:
    """Turns the first Ctrl-C (or a SIGTERM) into a flag, so that a step is finished and saved; a second one stops at
    once.
    """

    def __enter__(self) -> "Interrupt":
        self.asked = False
        self.previous = {s: signal.signal(s, self.ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def ask(self, *_) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def learning_rate(step: int, progress: float, peak: float) -> float:
    """A linear warm-up over 100 steps, then half a cosine down to 0 at progress 1."""
    return peak * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def update_ema(ema: dict[str, Tensor], network: nn.Module, step: int, decay: float = 0.999) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in network.state_dict().items():
        ema[name].lerp_(value, 1 - decay)


def make_loss(
    args: argparse.Namespace, network: nn.Module, world, sde: VPSDE, generator: torch.Generator, bases: tuple
):
    """step(progress) -> (loss, parts per sample, t): one batch drawn, perturbed and judged."""
    device = torch.device(args.device)

    def base_step(progress: float):
        video, audio = world.batch(args.batch, generator, only=args.model)
        return base_loss(network, sde, (video if args.model == "video" else audio).to(device), generator)

    def discriminator_step(progress: float):
        real = [x.to(device) for x in world.batch(args.batch, generator)]
        generated = None
        if args.fakes == "generated":
            rows = torch.randint(len(fake_pool[0]), (args.batch,), generator=generator)
            generated = [x[rows].to(device) for x in fake_pool]
        t = discriminator_levels(args.batch // GROUP, sde, generator).repeat_interleave(GROUP).to(device)
        # sigma^2: at small t base models err in every pixel, which says nothing of the pairing and would drown the rest
        noise_weight = args.noise_weight * sde.marginal(t)[1] ** 2 if progress >= args.warmup else 0.0
        loss, parts = discriminator_loss(
            network, *bases, real, t, generator, args.bce_weight, noise_weight, GROUP, generated
        )
        return loss, parts, t

    if args.model != "discriminator":
        return base_step
    fake_pool = generated_fakes(args, world, bases) if args.fakes == "generated" else None
    return discriminator_step


def generated_fakes(args: argparse.Namespace, world, bases: tuple) -> tuple[Tensor, Tensor]:
    """Independent pairs from the base models, drawn once and kept in the run folder for a resumed run."""
    path = args.out / "fakes.pt"
    if not path.exists():
        generator, pool = torch.Generator().manual_seed(args.seed), []
        video, audio = world.batch(1, generator)
        for _ in tqdm(range(FAKES // 32), desc="fakes from the base models"):
            shapes = (32, *video.shape[1:]), (32, *audio.shape[1:])
            pool.append([x.cpu() for x in sample(*bases, None, *shapes, generator=generator, device=args.device)])
        checkpoint.save(path, {"video": torch.cat([p[0] for p in pool]), "audio": torch.cat([p[1] for p in pool])})
    state = checkpoint.load(path)
    return state["video"], state["audio"]


def preview(
    path: Path, args: argparse.Namespace, network: nn.Module, ema: dict, world, sde: VPSDE, bases: tuple
) -> None:
    """A sheet of four samples from the EMA weights so far."""
    averaged = checkpoint.NETWORKS[args.model]().to(args.device)
    averaged.load_state_dict(ema)
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, *x.shape[1:]) for x in world.batch(1, generator)]
    if args.model == "discriminator":
        video, audio = sample(*bases, averaged.eval(), *shapes, generator=generator, device=args.device)
    else:
        frozen, shape = FrozenModel(averaged, sde, "x0"), shapes[args.model == "audio"]

        @torch.no_grad()
        def eps_model(states: tuple, t: Tensor) -> tuple:
            return (frozen(states[0], t),)

        states = (sde.prior(shape, generator, args.device),)
        *_, (x,) = denoise(eps_model, states, sde, steps=25)
        video, audio = (x, None) if args.model == "video" else (None, x)
    figures.save_sheet(path, video, audio)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    generator, sde, out = torch.Generator().manual_seed(args.seed), VPSDE(), args.out
    network = checkpoint.NETWORKS[args.model]().to(args.device)
    ema = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    run = {"step": 0, "seconds": 0.0, "history": []}
    if args.resume:
        state = checkpoint.load(out / "last.pt", args.device)
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, run = state["ema"], state["run"]
        generator.set_state(state["generator"].cpu())
    bases = ()
    if args.model == "discriminator":
        bases = tuple(checkpoint.load_base(args.bases / f"{k}.pt", k, sde, args.device) for k in ("video", "audio"))
        for base in bases:
            base.network = Fast(base.network)
    world = make_data(args)
    step_loss = make_loss(args, network, world, sde, generator, bases)

    def save() -> None:
        options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        common = {"kind": args.model, "options": {}, "args": options, "step": run["step"]}
        half = {name: value.half() for name, value in ema.items()}
        checkpoint.save(out / "model.pt", {**common, "model": half})
        state = {"model": network.state_dict(), "ema": ema, "optimizer": optimizer.state_dict(), "run": run}
        checkpoint.save(out / "last.pt", {**common, **state, "generator": generator.get_state()})
        preview(out / "samples.png", args, network, ema, world, sde, bases)
        figures.save_curves(out / "loss.png", run["history"])
        save_json(out / "report.json", summary(run))

    for kind in ("video", "audio") if bases else ():
        checkpoint.save(out / f"{kind}.pt", checkpoint.load(args.bases / f"{kind}.pt"))
    start, saved, window = time.time() - run["seconds"], time.time(), []
    bar = tqdm(
        total=1000, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}", desc=args.model
    )
    with Interrupt() as interrupt, bar:
        while not interrupt.asked and (progress := progress_of(run, args)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(run["step"], progress, args.lr)
            loss, parts, t = step_loss(progress)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {run['step']}; {out}/last.pt holds the last good state: "
                    "resume it with a lower --lr"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            update_ema(ema, network, run["step"])
            run["step"] += 1
            run["seconds"] = time.time() - start
            window.append((parts, t))
            if run["step"] % 100 == 0:
                run["history"].append(average(window, run["step"]))
                bar.set_postfix_str(" ".join(f"{k} {v:.4g}" for k, v in run["history"][-1]["loss"].items()))
                window = []
            bar.update(int(1000 * progress) - bar.n)
            if time.time() - saved > 60 * args.save_minutes:
                save()
                saved = time.time()
    if window:
        run["history"].append(average(window, run["step"]))
    save()
    state = "stopped; go on with" if interrupt.asked else "done; samples.png, loss.png and report.json are in"
    follow = f"python train.py --resume {out}" if interrupt.asked else str(out)
    print(f"{args.model}: {run['step']} steps in {run['seconds']:.0f} s, {state} {follow}")


def progress_of(run: dict, args: argparse.Namespace) -> float:
    """How much of the budget is spent: of --steps where given (the same numbers again), else of --minutes."""
    return run["step"] / args.steps if args.steps else run["seconds"] / (60 * args.minutes)


def average(window: list, step: int) -> dict:
    """Means over a window of steps: of each part, and of each part per noise level (None where no draw fell)."""
    t = torch.cat([t for _, t in window])
    entry = {"step": step, "loss": {}, "levels": {}}
    for name in window[-1][0]:
        values = torch.cat([parts[name] if name in parts else torch.full_like(t, torch.nan) for parts, t in window])
        bins = (t * LEVELS).long().clamp(max=LEVELS - 1)
        entry["loss"][name] = values.nanmean().item()
        entry["levels"][name] = [
            v if math.isfinite(v := values[bins == b].nanmean().item()) else None for b in range(LEVELS)
        ]
    return entry


def summary(run: dict) -> dict:
    """report.json: the last tenth of the run's windows, averaged."""
    import resource

    last = run["history"][-max(1, len(run["history"]) // 10) :]
    mean = lambda values: sum(values) / len(values) if values else None  # noqa: E731
    report = {
        "steps": run["step"],
        "seconds": run["seconds"],
        "steps_per_second": run["step"] / max(run["seconds"], 1e-9),
    }
    report["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    names = last[-1]["loss"] if last else ()
    report["loss"] = {k: mean([h["loss"][k] for h in last if k in h["loss"]]) for k in names}
    report["levels"] = {
        k: [
            mean([h["levels"][k][b] for h in last if h["levels"].get(k, [None] * LEVELS)[b] is not None])
            for b in range(LEVELS)
        ]
        for k in names
    }
    return report


def make_data(args: argparse.Namespace):
    """Anything with .batch(n, generator, only) -> (video, audio)."""
    if args.data == "xylophone":
        return Xylophone()
    from clips import ClipFolder

    return ClipFolder(Path(args.data))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=tuple(DEFAULTS), default="discriminator")
    parser.add_argument("--data", default="xylophone", help="xylophone, or a folder of clips")
    parser.add_argument("--steps", type=int, help="train this many steps; repeats exactly on the same machine")
    parser.add_argument(
        "--minutes", type=float, help="or train this long (default: 75 for a base, 18 for the discriminator)"
    )
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder, with its own options")
    parser.add_argument("--batch", type=int, help="clips a step (default 32)")
    parser.add_argument("--lr", type=float, help="peak learning rate (default 1e-3)")
    parser.add_argument("--bce-weight", type=float, default=1.0)
    parser.add_argument("--noise-weight", type=float, default=2.0)
    parser.add_argument(
        "--warmup", type=float, default=0.15, help="share of the run on cross-entropy alone (default %(default)s)"
    )
    parser.add_argument("--fakes", choices=("shuffled", "generated"), default="shuffled")
    parser.add_argument("--bases", type=Path, default=checkpoint.PRETRAINED, help="folder with video.pt and audio.pt")
    parser.add_argument(
        "--save-minutes", type=float, default=5.0, help="time between checkpoints (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="run folder (default runs/MODEL)")
    args = parser.parse_args(argv)
    if args.resume:
        stored = checkpoint.load(Path(args.resume) / "last.pt")["args"]
        for name in ("model", "data", "batch", "lr", "bce_weight", "noise_weight", "warmup", "fakes", "seed"):
            setattr(args, name, stored[name])
        args.steps, args.minutes = args.steps or stored["steps"], args.minutes or stored["minutes"]
        args.bases, args.out = Path(stored["bases"]), Path(args.resume)
    for name, value in DEFAULTS[args.model].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.out = args.out or Path("runs") / args.model
    if args.batch % GROUP:
        parser.error(f"--batch must be a multiple of {GROUP}")
    if args.batch < 1 or (args.steps is not None and args.steps < 1) or args.minutes <= 0:
        parser.error("--batch and --steps at least 1 and --minutes above 0")
    return args


if __name__ == "__main__":
    run_main(lambda: train(parse()))
