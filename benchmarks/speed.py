"""Steps per second, their ratios and peak memory, in one run: parts take turns, so that a busy machine slows all alike.

    python benchmarks/speed.py                        at the shipped size
    python benchmarks/speed.py --size 64 --batch 8    at another
    python benchmarks/speed.py --profile              and where the time of a guided and of a training step goes

Of a sampler's step: both base models, the same guided, and the joint model. Of training: the next batch of the world;
what the frozen base models say of it; the discriminator's step on cross-entropy alone (first order) and with the noise
loss (double backpropagation), each without the base models; the steps of the base models and of the joint model.
"""

import sys  # isort: skip
from pathlib import Path  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules it shares
import script  # isort: skip, before what takes seconds to import

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

import media
from checkpoint import NETWORKS, options_of
from clips import ClipFolder
from data import Xylophone
from discriminator import discriminator_loss
from guidance import JointEps, unguided_eps
from manifest import save_report
from objective import GROUP, denoising_loss, mixed_precision, of_states
from pairs import perturb_pairs
from score import VPSDE, FrozenModel

MATRIX_WORK = ("mm", "conv", "gemm", "linear", "cutlass", "wgmma")  # in the names of operations and of GPU kernels


def clip_folder(path: Path, world: Xylophone, n: int = 24) -> ClipFolder:
    """n clips of the world, twice as long as a window, as files; decoded once, as training finds them."""
    frames, waveforms, _ = world.render(2 * n, torch.Generator().manual_seed(1))
    pairs = zip(frames.unflatten(0, (n, 2)).flatten(1, 2), waveforms.unflatten(0, (n, 2)).flatten(1), strict=True)
    for k, (picture, sound) in enumerate(pairs):
        media.save_mp4(path / f"{k}.mp4", picture, sound, world.fps, scale=1)
    return ClipFolder(path, world.size)


def make_parts(size: int, batch: int, device: str, clips: Path) -> dict[str, Callable[[], None]]:
    """What is timed: each a function that does one step at noise level t = 0.5."""
    torch.manual_seed(0)
    sde, world, generator = VPSDE(), Xylophone(size), torch.Generator().manual_seed(0)
    folder = clip_folder(clips, world)
    networks = {kind: network(**options_of(kind, world)).to(device) for kind, network in NETWORKS.items()}
    frozen = [FrozenModel(NETWORKS[kind](size).to(device), sde, "x0") for kind in ("video", "audio")]
    pair = tuple(x.to(device) for x in world.batch(batch, generator))
    t, eps = torch.full((batch,), 0.5, device=device), tuple(torch.randn_like(x) for x in pair)
    guided, unguided = (JointEps(*frozen, networks["discriminator"], weight) for weight in (1.0, 0.0))
    joint_eps = unguided_eps(networks["joint"], sde)
    noisy = perturb_pairs(*frozen, pair, t)

    def forwards() -> None:
        with mixed_precision(torch.device(device), inference=True):
            perturb_pairs(*frozen, pair, t)

    def step_of(noise_weight: float) -> None:
        networks["discriminator"].zero_grad()
        discriminator_loss(networks["discriminator"], sde, noisy, 1.0, noise_weight, GROUP)[0].backward()

    def denoising_step(kind: str, only: slice = slice(2)) -> None:
        networks[kind].zero_grad()
        denoising_loss(of_states(networks[kind], kind), sde, pair[only], t, eps[only])[0].backward()

    return {
        "unguided sampler step": lambda: unguided(pair, t),
        "guided sampler step": lambda: guided(pair, t),
        "joint model's sampler step": lambda: joint_eps(pair, t),
        "a batch of the world": lambda: world.batch(batch, generator),
        "a batch of a folder of clips": lambda: folder.batch(batch, generator),
        "base models asked in training": forwards,
        "discriminator, first order": lambda: step_of(0.0),
        "discriminator, double backprop": lambda: step_of(1.0),
        "video base model": lambda: denoising_step("video", slice(0, 1)),
        "audio base model": lambda: denoising_step("audio", slice(1, 2)),
        "joint model": lambda: denoising_step("joint"),
    }


def peak_memory(run: Callable[[], None], device: str) -> float:
    """MiB at the peak of one run: of the GPU, or of the whole process where the system can say (Linux)."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 2**20
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return float("nan")
    reset.write_text("5")
    run()
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024


def timed(run: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def where_time_goes(run: Callable[[], None], device: str, top: int = 8) -> tuple[list[tuple[str, float]], float]:
    """The operations (GPU: kernels) that take most of the time of one run, with their shares; that of matrix work."""
    on_gpu = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as trace:
        timed(run, device)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = {event.key: getattr(event, key) for event in trace.key_averages()}
    total = sum(times.values())
    matrix = sum(value for name, value in times.items() if any(part in name.lower() for part in MATRIX_WORK))
    return [(name, times[name] / total) for name in sorted(times, key=times.get)[::-1][:top]], matrix / total


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="pixels a side, as of train.py (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="(default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="turns, of which the median counts (default %(default)s)")
    parser.add_argument("--profile", action="store_true", help="show the operations that take most of the time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    args = script.parse_options(parser, argv)
    if args.size < 32 or args.size % 16 or args.batch < 1 or args.batch % GROUP or args.rounds < 1:
        parser.error(f"--size must be a multiple of 16 from 32 on, --batch one of {GROUP}, and --rounds at least 1")

    with tempfile.TemporaryDirectory() as clips:
        parts = make_parts(args.size, args.batch, args.device, Path(clips))
        memory = {name: peak_memory(run, args.device) for name, run in parts.items()}  # and their first, slower run
        turns = [{name: timed(run, args.device) for name, run in parts.items()} for _ in range(args.rounds)]
    seconds = {name: statistics.median(turn[name] for turn in turns) for name in parts}
    loaded, asked, first, double = (seconds[name] for name in list(parts)[4:8])
    ratios = {
        "guided / unguided sampler step": seconds["guided sampler step"] / seconds["unguided sampler step"],
        "double backprop / first order": double / first,
        "discriminator's step / (first order + base models)": (double + asked) / (first + asked),
        "clips loaded / clips trained on, per second": (double + asked) / loaded,
    }
    print(f"size {args.size}, batch {args.batch}, {args.device}, {torch.get_num_threads()} threads")
    for name in parts:
        print(f"{name:34} {1 / seconds[name]:9.2f} steps/s {memory[name]:8.0f} MiB at its peak")
    for name, ratio in ratios.items():
        print(f"{name:52} {ratio:.2f}")
    report = {"size": args.size, "batch": args.batch, "device": args.device, "seconds": seconds, "ratios": ratios}
    report |= {"peak_memory_mb": memory, "matrix_work": {}}
    for name in ("guided sampler step", "discriminator, double backprop") if args.profile else ():
        operations, report["matrix_work"][name] = where_time_goes(parts[name], args.device)
        print(f"{name}: {report['matrix_work'][name]:.0%} of the time is matrix work")
        for operation, share in operations:
            print(f"    {share:6.1%} {operation[:90]}")
    save_report(args, report)


if __name__ == "__main__":
    script.run_main(main)
