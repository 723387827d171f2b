"""Many clips: drawn a chunk at a time, the chunks shared among processes.

    torchrun --nproc-per-node 4 -- evaluate.py --n 10000
    torchrun --nproc-per-node 4 -- sample.py --n 256

A chunk is a function of the seed and of the number of its first clip: any number of processes makes the same clips.
Every process ends with all of them; rank 0 writes.

Used by sample.py, prompted.py, evaluate.py and benchmarks/.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

import distributed
from seeds import stream

CHUNK = 64  # clips at a time


def generate(
    draw_clips: Callable[..., tuple[Tensor, Tensor]],
    shapes: list[tuple[int, ...]],
    seed: int,
    n: int,
    name: str,
    given: dict[str, Tensor] | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor, float]:
    """n clips, (video (n, ...), audio (n, ...)) on the CPU, and the seconds of one process that one took.

    `draw_clips(video_shape, audio_shape, generator=...)` is asked for a chunk, `shapes` being those of one clip.
    `given` holds tensors (n, ...) of all clips by name, such as given_video; a chunk is handed its rows. Raises
    FloatingPointError on a clip that is not finite.
    """
    start, parts = time.time(), {}
    firsts = range(chunk * distributed.rank(), n, chunk * distributed.count())
    for first in tqdm(firsts, desc=name, unit="chunk", disable=distributed.rank() > 0):
        rows, generator = slice(first, min(first + chunk, n)), stream(seed, first)
        known = {key: value[rows] for key, value in (given or {}).items()}
        clips = draw_clips(*((rows.stop - first, *shape) for shape in shapes), generator=generator, **known)
        if not all(torch.isfinite(x).all() for x in clips):
            raise FloatingPointError(f"the {name} clips are not finite: lower --weight or take more --steps")
        parts[first] = [x.cpu().clone() for x in clips]  # a given one is a view, and would be sent with all it views
    seconds = (time.time() - start) * distributed.count() / n
    parts = distributed.union(parts)
    video, audio = (torch.cat(x) for x in zip(*(parts[first] for first in sorted(parts)), strict=True))
    return video, audio, seconds
