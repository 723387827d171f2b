"""How close clips are to real ones: their features, their physics, and whether they repeat each other or the training.

    frechet    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), means and covariances in the features of a random network
    histogram  total variation 1/2 sum |p - q| between the shares of clips with 0, 1, ... hits, or of hits on each bar
    gravity    g = -(h_{k+1} - 2 h_k + h_{k-1}) fps^2, from the ball's height in three frames of one flight
    no ball    share of clips of which a frame has lost its ball
    no plumb   share of clips whose ball moves sideways before its first impact
    seam       how much more a clip changes across the cut where its given start ends
    nearest    RMS distance of a clip to the closest one drawn in training, or of its own set

Used by evaluate.py, which shows the same of held-out real clips beside them: what chance alone leaves.
"""

import torch
from torch import Tensor, nn

import data
from hits import Hit, ball_column, ball_cover, ball_height

PART = 64  # clips that go through the random network at a time


def seam(x: Tensor, cut: int, dim: int) -> float:
    """RMS change of clips x across a cut along time, from step cut - 1 to cut, over that of the step before it.

    1 where nothing shows; only the step before is certain to be real where the rest is made anew.
    """
    change = x.narrow(dim, cut - 2, 3).diff(dim=dim).square().transpose(0, dim).flatten(1).mean(1).sqrt()
    return (change[1] / change[0]).item()


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
        h = torch.cat([self.net(part).flatten(2) for part in x.split(PART)])
        return torch.cat([h.mean(2), h.std(2)], dim=1).double()


def frechet(x: Tensor, y: Tensor) -> float:
    """Frechet distance between Gaussians fitted to features x (n, D) and y (m, D)."""
    S1, S2 = x.T.cov(), y.T.cov()
    values, vectors = torch.linalg.eigh(S1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ S2 @ root).clamp(min=0).sqrt().sum()
    return ((x.mean(0) - y.mean(0)).square().sum() + S1.trace() + S2.trace() - 2 * cross).item()


def frechet_error(x: Tensor, y: Tensor, draws: int = 50) -> float:
    """What chance does to frechet(x, y): its standard deviation over sets as large, drawn from x with repeats.

    Efron's bootstrap (1979). Where x and y are alike it is too large, up to twofold: sets of x differ from x as x does
    from y.
    """
    generator = torch.Generator().manual_seed(0)
    sets = (x[torch.randint(len(x), (len(x),), generator=generator).to(x.device)] for _ in range(draws))
    return torch.tensor([frechet(drawn, y) for drawn in sets]).std().item()


def total_variation(counts: list[int], reference: list[int], bins: int) -> float:
    """1/2 sum |p - q| between two histograms over 0 to bins - 1, the last of which holds all above."""
    p, q = (
        torch.tensor(x, dtype=torch.long).clamp(max=bins - 1).bincount(minlength=bins).double()
        for x in (counts, reference)
    )
    return 0.5 * (p / p.sum().clamp(min=1) - q / q.sum().clamp(min=1)).abs().sum().item()


def gravity(video: Tensor, seen: list[list[Hit]], fps: int) -> Tensor:
    """g in picture heights / s^2 at each frame of video (B, 3, T, H, W) whose neighbours lie in the same flight."""
    height = ball_height((video.clamp(-1, 1) + 1) / 2)  # (B, T)
    g = -(height[:, 2:] - 2 * height[:, 1:-1] + height[:, :-2]) * fps**2
    visible = (height > 0).unfold(1, 3, 1).all(2)
    times = torch.arange(1, height.shape[1] - 1) / fps
    for clip, hits in enumerate(seen):
        impacts = torch.tensor([hit[0] for hit in hits])
        apart = (times[:, None] - impacts).abs() > 1 / fps
        visible[clip] &= apart.all(1) & (times > impacts.min() if hits else torch.zeros(()).bool())
    return g[visible]


def without_ball(video: Tensor) -> float:
    """Share of the clips video (B, 3, T, H, W) of which a frame shows no pixel that the ball covers by half."""
    return (ball_cover((video.clamp(-1, 1) + 1) / 2).amax((2, 3)) < 0.5).any(1).float().mean().item()


def without_plumb(video: Tensor, seen: list[list[Hit]], fps: int) -> float:
    """Share of the clips video (B, 3, T, H, W) whose ball moves by half a bar or more from a frame to the next before
    its first impact, seen or, where none is, to the clip's end: it should hang, and then fall, in one place.
    """
    picture = (video.clamp(-1, 1) + 1) / 2
    moved = ball_column(picture).diff(dim=1).abs() >= 0.5  # (B, T - 1), of frames t and t + 1
    there = ball_height(picture) > 0
    impact = torch.tensor([clip[0][0] if clip else torch.inf for clip in seen])
    before = torch.arange(1, video.shape[2]) / fps < impact[:, None]
    return (moved & before & there[:, 1:] & there[:, :-1]).any(1).float().mean().item()


def nearest(x: Tensor, y: Tensor | None = None) -> float:
    """Median over clips x (n, ...) of the RMS distance to the nearest of y (m, ...), or of the others of x."""
    distance = torch.cdist(x.flatten(1), (x if y is None else y).flatten(1)) / x[0].numel() ** 0.5
    if y is None:
        distance.fill_diagonal_(torch.inf)
    return distance.min(1).values.median().item()


def statistics(clips: dict, real: dict, training: tuple[Tensor, Tensor], fps: int) -> dict[str, float | None]:
    """Of clips against real ones, both as {"video", "audio", "seen", "heard"}, and against pairs drawn in training."""
    out = {}
    for sense in ("seen", "heard"):
        counts = ([len(hits) for hits in x[sense]] for x in (clips, real))
        bars = ([hit[1] for hits in x[sense] for hit in hits] for x in (clips, real))
        out |= {f"{sense}_count_tv": total_variation(*counts, 6)}
        out |= {f"{sense}_bar_tv": total_variation(*bars, len(data.SCALE))}
    g = gravity(clips["video"], clips["seen"], fps)
    low, middle, high = g.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() if len(g) else (None, None, None)
    out |= {"gravity": middle, "gravity_spread": high - low if len(g) else None}
    out |= {"without_ball": without_ball(clips["video"])}
    out |= {"without_plumb": without_plumb(clips["video"], clips["seen"], fps)}
    for name, drawn in zip(("video", "audio"), training, strict=True):
        out |= {f"{name}_nearest_training": nearest(clips[name], drawn), f"{name}_nearest_own": nearest(clips[name])}
    return out
