"""What one training step minimises, in two halves: a batch drawn and perturbed, and its loss.

    base, joint     E |x0_hat(x_t, t) - x_0|^2 / max(sigma_t, FINEST)^2, of one modality or of both; in a picture, that
                    part of the error which puts things in another place may weigh more (displacement), in a sound the
                    error where it is loud (loudness)
    discriminator   discriminator_loss (discriminator.py), cross-entropy alone for the first steps of a run: it is cheap
                    and finds the pairing; then with the noise loss, which makes the gradient right. Half the pairs have
                    equal noise levels, for the joint score, most often where hits are decided; half have one side
                    clean, for the conditional ones, and the other anywhere from t_min to 1

Batch k is a function of the seed and of k alone, so that a resumed run sees the batches of an undisturbed one; threads
of their own make the next ones (rendering, noise, both base models for the discriminator) while one is in use.

Used by train.py.
"""

import argparse
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import distributed
import media
from discriminator import discriminator_loss
from guidance import sample
from pairs import both, joint_and_conditional, perturb_pairs
from score import VPSDE
from seeds import stream

LEVEL_MEAN, LEVEL_SPREAD = 0.1, 0.6  # of logit t, where pairs of equal levels train the discriminator
GROUP = 4  # clips that share a noise level: each is told from the three others
FINEST = 0.3  # sigma, next to sigma / alpha: at weaker noise a clip itself tells the instants of its hits to a ms
LOW = 2.5  # sigma / alpha (t = 0.44): below it what there is is settled, and where exactly is refined
WINDOW = 8  # pixels a side in which a displacement is one
FAKES = 1024  # pairs drawn from the base models for --fakes generated


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """One draw from each of n equal parts of [0, 1]: uniform, with less variance than n free draws."""
    return (torch.arange(n) + torch.rand(n, generator=generator)) / n


def logit_normal(u: Tensor, sde: VPSDE) -> Tensor:
    """Noise levels from uniform draws u: nine in ten fall between 0.29 and 0.75, where hits are decided."""
    return torch.sigmoid(LEVEL_MEAN + LEVEL_SPREAD * torch.special.ndtri(u.double())).float().clamp(sde.t_min, 1)


def uniform(u: Tensor, sde: VPSDE) -> Tensor:
    """Noise levels from uniform draws u: from t_min to 1."""
    return sde.t_min + (1 - sde.t_min) * u


def more_low(u: Tensor, low: float, others: Callable[[Tensor, VPSDE], Tensor], sde: VPSDE) -> Tensor:
    """Noise levels from uniform draws u: a share `low` of them alone from sigma / alpha = FINEST to LOW, uniform in its
    logarithm, the rest as `others` has them.
    """
    ratio = math.log(FINEST) + math.log(LOW / FINEST) * u / max(low, 1e-9)
    rest = others(((u - low) / (1 - low)).clamp(0, 1), sde)
    return torch.where(u < low, sde.time_at(-2 * ratio), rest)


def ahead(make: Callable[[int], tuple], first: int, threads: int = 2) -> Iterator[tuple]:
    """make(first), make(first + 1), ..., each made on one core by one of the threads, while earlier ones are in use."""
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        coming = deque(pool.submit(make, first + k) for k in range(2 * threads))
        for k in itertools.count(first + 2 * threads):
            yield coming.popleft().result()
            coming.append(pool.submit(make, k))


def of_states(network: nn.Module, kind: str) -> Callable[[tuple, Tensor], tuple]:
    """A network of any kind as one that takes and gives a tuple of states, of which a base model knows just one."""
    return network if kind == "joint" else lambda states, t: (network(*states, t),)


def displacement(error: Tensor, x0_hat: Tensor) -> Tensor:
    """Per clip (B,), that part of mean(error^2) which shows things in another place: error, x0_hat (B, C, T, H, W).

    To first order what is drawn dy too low is off by dy d x0 / d y. So the error is projected on the slopes of x0_hat,
    in windows of WINDOW x WINDOW pixels of a frame (as Lucas & Kanade 1981 find a motion). A ball a tenth of a pixel
    off its path is little of |error|^2 and most of this. A quadratic form that x_t tells: added to |error|^2 it leaves
    the best x0_hat at E[x_0 | x_t], as slopes of x_0 itself would not.
    """
    total = 0.0
    for axis in (3, 4):
        (slope,) = torch.gradient(x0_hat, dim=axis)
        along, energy = (WINDOW**2 * F.avg_pool2d((x * slope).sum(1), WINDOW).flatten(1) for x in (error, slope))
        total = total + (along.square() / (energy + 0.1)).sum(1)  # (B, windows) -> (B,)
    return total / x0_hat[0].numel()


def loudness(audio: Tensor) -> Tensor:
    """The amplitude that log-mel audio (B, 1, n_mels, L) stands for, 0.001 at the floor to 1.

    Loud cells, of which a clip has few, tell when a hit is and how it swells; errors at the floor are not heard. Taken
    of x0_hat, a function of x_t, a weight on errors leaves the best x0_hat at E[x_0 | x_t].
    """
    return 10 ** ((1 - audio.clamp(-1, 1)) / 2 * media.FLOOR_DB / 20)


def denoising_loss(
    network: Callable[[tuple, Tensor], tuple],
    sde: VPSDE,
    x0: tuple,
    t: Tensor,
    eps: tuple,
    motion: float = 0.0,
    loud: float = 0.0,
) -> tuple[Tensor, dict, Tensor]:
    """E |x0_hat(x_t, t) - x_0|^2 / max(sigma_t, FINEST)^2, a mean over the elements of each state (B, ...), summed over
    states.

    The weight 1 / sigma_t^2 makes it the error of v = alpha_t eps - sigma_t x_0 (Salimans & Ho 2022, 2202.00512):
    neither fine detail at small t nor the layout at large t, where it is decided when hits happen, is drowned by the
    other. Below FINEST detail would drown all else: at t = 0.005 gradients were 20 to 40 times those of t = 0.2. So
    the weight stops growing (as min-SNR does, Hang et al. 2023, 2303.09556). `motion` times the displacement is added
    for a video model; `loud` times the loudness is added to the weight of each cell for an audio model. Returns loss,
    parts per sample and t (B,).
    """
    with mixed_precision(t.device):
        x0_hat = network(tuple(sde.perturb(x, t, e) for x, e in zip(x0, eps, strict=True)), t)
    errors = [(x - y).square().flatten(1).mean(1) for x, y in zip(x0_hat, x0, strict=True)]
    sigma, parts = sde.marginal(t)[1], {}
    weight = 1 / sigma.clamp(min=FINEST) ** 2
    loss = (weight * sum(errors)).mean()
    if loud:
        heard = (loudness(x0_hat[0].detach()) * (x0_hat[0] - x0[0]).square()).flatten(1).mean(1)
        loss = loss + loud * (weight * heard).mean()
        parts = {"loud_error": heard.detach() / sigma**2}
    if motion:
        moved = displacement(x0_hat[0] - x0[0], x0_hat[0].detach())
        loss = loss + motion * (weight * moved).mean()
        parts = {"displacement": moved.detach() / sigma**2}
    return loss, {"v_error": sum(errors).detach() / sigma**2} | parts, t


def mixed_precision(device: torch.device, inference: bool = False) -> torch.autocast:
    """bfloat16 autocast where it is the faster: on GPUs, and to ask frozen models on CPUs that have it in hardware.

    It adds a thousandth to the noise that the base models miss.
    """
    faster = device.type == "cuda" or (inference and torch.cpu.get_capabilities().get("avx512_bf16", False))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=faster)


def make_objective(
    args: argparse.Namespace, network: nn.Module, world, sde: VPSDE, bases: tuple
) -> tuple[Callable[[int], tuple], Callable[[tuple], tuple[Tensor, dict[str, Tensor], Tensor]]]:
    """make_batch(k) and loss_of(batch) -> (loss, parts per sample, t), of this process's rows of batch k."""
    device, rows = torch.device(args.device), distributed.rows(args.batch)

    def denoising_batch(k: int) -> tuple:
        generator = stream(args.seed, k)
        only = "both" if args.model == "joint" else args.model
        x0 = tuple(x.to(device) for x in world.batch(args.batch, generator, only, rows) if x is not None)
        t = more_low(stratified(args.batch, generator)[rows], args.low, uniform, sde)
        eps = tuple(torch.randn(args.batch, *x.shape[1:], generator=generator)[rows].to(device) for x in x0)
        return x0, t.to(device), eps

    def discriminator_batch(k: int) -> tuple:
        generator = stream(args.seed, k)
        video, audio, *told = world.batch(args.batch, generator, rows=rows)
        real = [x.to(device) for x in (video, audio)]
        u = stratified(args.batch // GROUP, generator)
        choices = (more_low(u, args.low, others, sde) for others in (logit_normal, uniform))
        t, alone = (world.levels(t) if args.video_model else t for t in choices)
        levels = joint_and_conditional(t, sde.t_min, generator, alone)
        t = tuple(level.repeat_interleave(GROUP)[rows].to(device) for level in levels)
        told = told[0] if told else {}
        with mixed_precision(device, inference=True):
            ask_base = args.noise_weight > 0 and k >= args.warmup
            noisy = perturb_pairs(*bases, real, t, generator, ask_base, share=(args.batch, rows), **told)
        if args.fakes == "shuffled":
            return noisy, None
        drawn = torch.randint(len(fake_pool[0]), (args.batch,), generator=generator)[rows]
        fakes = [x[drawn].float().to(device) for x in fake_pool]
        return noisy, perturb_pairs(*bases, fakes, t, generator, ask_base=False, share=(args.batch, rows))

    def discriminator_step(batch: tuple) -> tuple:
        real, generated = batch
        # sigma^2: at small t base models err in every pixel, which says nothing of the pairing and would drown the rest
        levels, noise_weight = both(real.t), 0.0
        if real.missing:
            noise_weight = tuple(args.noise_weight * sde.marginal(t)[1] ** 2 for t in levels)
        loss, parts = discriminator_loss(
            network, sde, real, args.bce_weight, noise_weight, GROUP, args.fakes, generated
        )
        return loss, parts, torch.maximum(*levels)

    if args.model != "discriminator":
        predict = of_states(network, args.model)
        return denoising_batch, lambda batch: denoising_loss(predict, sde, *batch, args.motion, args.loud)
    fake_pool = None if args.fakes == "shuffled" else generated_fakes(args, world, bases)
    return discriminator_batch, discriminator_step


def generated_fakes(args: argparse.Namespace, world, bases: tuple) -> list[Tensor]:
    """Independent pairs from the base models; a resumed run draws the same ones again."""
    shapes = [(32, *x.shape[1:]) for x in world.batch(1, torch.Generator())]

    def draw(k: int) -> tuple[Tensor, Tensor]:
        return sample(*bases, None, *shapes, generator=stream(args.seed, k), device=args.device)

    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        drawn = list(tqdm(pool.map(draw, range(FAKES // 32)), desc="clips from the base models", total=FAKES // 32))
    return [torch.cat(x).half().cpu() for x in zip(*drawn, strict=True)]
