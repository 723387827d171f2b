"""Xylophone: an embedded world in which the truth about sound and picture is known.

A ball bounces along a row of eight coloured bars. Where it lands sets the pitch, when it lands the onset, how hard the
loudness; the struck bar glows. In flight the ball follows h(s) = g/2 s (T - s), so a long flight T is high, lands
fast (v = g T / 2) and sounds loud (amplitude (v / v_max)^2, the energy). Each modality alone says nothing about the
other's draw; together they are locked to each other.

Used by train.py and evaluate.py as the default data; clips.py is the same interface over a folder of real files.
"""

import math

import torch
from torch import Tensor

import media

SCALE = (523.25, 587.33, 659.26, 783.99, 880.00, 1046.50, 1174.66, 1318.51)  # C5 pentatonic: any melody is pleasant
PARTIALS = ((1.0, 1.0, 0.35), (3.0, 0.30, 0.12), (6.0, 0.10, 0.05))  # frequency ratio, amplitude, decay in s
COLOURS = ("e63946", "f47d32", "fac33c", "82be46", "2eaa96", "3282cd", "5f55c8", "b450be")
PALETTE = tuple(tuple(bytes.fromhex(colour)) for colour in COLOURS)
BACKGROUND, BALL = (18, 20, 38), (250, 244, 225)
GRAVITY = 7.0  # picture heights per s^2
FLIGHT = (0.45, 0.8)  # seconds between two impacts
DROP = (0.25, 0.56)  # height from which the ball is released, in picture heights
BAR_TOP, RADIUS = 0.25, 0.085  # picture heights
GLOW_DECAY = 0.3  # seconds
ALL = slice(None)
SPEED_MAX = GRAVITY * FLIGHT[1] / 2


class Xylophone:
    """The world, drawn from a seed in batches: size / 2 frames (T, H, W) at 8 fps; sound at media.SAMPLE_RATE.

    A seed gives the same clips on every device, where they are drawn and played, to rounding.
    """

    def __init__(self, size: int = 32, device: str = "cpu"):
        self.size, self.frames, self.fps, self.device = size, size // 2, 8, device
        self.seconds = self.frames / self.fps
        self.samples = int(self.seconds * media.SAMPLE_RATE)
        self.shapes = (3, self.frames, size, size), (1, media.N_MELS, self.samples // media.HOP)
        self.notes = self._notes().to(device)

    def batch(
        self, n: int, generator: torch.Generator, only: str = "both", rows: slice = ALL
    ) -> tuple[Tensor | None, Tensor | None]:
        """n pairs ready for the models: video (n, 3, T, H, W) and log-mel audio (n, 1, n_mels, L), in [-1, 1].

        `only` "video" or "audio" spares the rendering of the other, which is then None; `rows` that of all other rows.
        """
        score = {name: x[rows] for name, x in self._compose(n, generator).items()}
        video = media.to_video(self._draw(score)) if only != "audio" else None
        return video, media.log_mel(self._play(score)) if only != "video" else None

    def render(self, n: int, generator: torch.Generator, later: float = 0.0) -> tuple[Tensor, Tensor, list]:
        """n clips: frames uint8 (n, T, H, W, 3), waveform (n, samples), hits (time_s, bar, loudness) per clip.

        The same clips with everything in them `later` by so many seconds tell how a clip changes with time.
        """
        score = self._compose(n, generator)
        score["times"] = score["times"] + later
        times, bars, loudness = score["times"], score["bars"], score["loudness"]
        hits = [
            [(t.item(), b.item(), v.item()) for t, b, v in zip(*clip, strict=True) if t < self.seconds]
            for clip in zip(times, bars, loudness, strict=True)
        ]
        return self._draw(score), self._play(score), hits

    def _compose(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Impact times, bars and loudness (n, K), the height (n,) of the first fall.

        No impact falls within the first 0.1 s or the last 0.2 s, where one modality could not show it; clips that
        would have one are drawn again. About one clip in ten has no impact: its ball is released too late.
        """
        count = 2 + int(self.seconds / FLIGHT[0])

        def draw(k: int) -> tuple[Tensor, Tensor]:
            first = 0.1 + (self.seconds + 0.05) * torch.rand(k, 1, generator=generator)
            flight = FLIGHT[0] + (FLIGHT[1] - FLIGHT[0]) * torch.rand(k, count - 1, generator=generator)
            return torch.cat([first, first + flight.cumsum(1)], dim=1), flight

        def late(times: Tensor) -> Tensor:
            return ((times > self.seconds - 0.2) & (times < self.seconds + 0.05)).any(1)

        times, flight = draw(n)
        while (again := late(times)).any():
            times[again], flight[again] = draw(int(again.sum()))
        bars = torch.randint(len(SCALE), (n, count), generator=generator)
        drop = DROP[0] + (DROP[1] - DROP[0]) * torch.rand(n, generator=generator)
        speed = torch.cat([torch.sqrt(2 * GRAVITY * drop)[:, None], GRAVITY * flight / 2], dim=1)
        score = {"times": times, "bars": bars, "loudness": (speed / SPEED_MAX) ** 2, "drop": drop}
        return {name: value.to(self.device) for name, value in score.items()}

    def _draw(self, score: dict[str, Tensor]) -> Tensor:
        """Frames uint8 (n, T, H, W, 3): bars that glow when struck, and a ball with soft edges."""
        times, bars, drop = score["times"], score["bars"], score["drop"]
        now = torch.arange(self.frames, device=self.device) / self.fps  # (T,)
        since = now[None, :, None] - times[:, None]  # (n, T, K)
        landed = (since >= 0).sum(2)  # (n, T): impacts so far

        last, coming = (landed - 1).clamp(min=0), landed.clamp(max=times.shape[1] - 1)
        t0, t1 = times.gather(1, last), times.gather(1, coming)
        s, flight = now - t0, (t1 - t0).clamp(min=1e-6)
        falling = (now - (t1 - torch.sqrt(2 * drop[:, None] / GRAVITY))).clamp(min=0)
        height = torch.where(landed == 0, drop[:, None] - GRAVITY / 2 * falling**2, GRAVITY / 2 * s * (flight - s))
        b0, b1 = bars.gather(1, last).float(), bars.gather(1, coming).float()
        x = (torch.where(landed == 0, b1, b0 + (b1 - b0) * s / flight) + 0.5) / len(SCALE)
        y = BAR_TOP + RADIUS + height.clamp(min=0)

        struck = torch.nn.functional.one_hot(bars, len(SCALE)).float()  # (n, K, bars)
        strength = torch.where(since >= 0, torch.exp(-since.clamp(min=0) / GLOW_DECAY), 0.0)
        glow = torch.einsum("ntk,nk,nkb->ntb", strength, score["loudness"].sqrt(), struck).clamp(max=1)

        axis = (torch.arange(self.size, device=self.device) + 0.5) / self.size
        column = (axis * len(SCALE)).long()  # (W,): the bar above which a pixel lies
        rise = 1 - axis  # (H,): height of a pixel row above the floor
        length = BAR_TOP - 0.01 * column  # low notes have long bars
        is_bar = (rise[:, None] < BAR_TOP) & (rise[:, None] > BAR_TOP - length)  # (H, W)
        colour = torch.tensor(PALETTE, device=self.device)[column] / 255.0  # (W, 3)
        light = glow[:, :, column][:, :, None, :, None]  # (n, T, 1, W, 1)
        lit = 0.55 * colour + (1 - 0.55 * colour) * light
        background, ball = (torch.tensor(c, device=self.device) / 255.0 for c in (BACKGROUND, BALL))
        picture = torch.where(is_bar[..., None], lit, background)  # (n, T, H, W, 3)

        distance = torch.hypot(axis - x[..., None, None], rise[:, None] - y[..., None, None])  # (n, T, H, W)
        cover = ((RADIUS - distance) * self.size + 0.5).clamp(0, 1)[..., None]
        picture = picture + cover * (ball - picture)
        return (picture * 255).round().to(torch.uint8)

    def _notes(self) -> Tensor:
        """One struck note per bar at loudness 1: (bars, samples). Decaying partials, a 2 ms attack, peak 0.8."""
        t = torch.arange(self.samples) / media.SAMPLE_RATE
        notes = torch.zeros(len(SCALE), self.samples)
        for note, pitch in zip(notes, SCALE, strict=True):
            for ratio, amplitude, decay in PARTIALS:
                if ratio * pitch < 0.45 * media.SAMPLE_RATE:
                    note += amplitude * torch.exp(-t / decay) * torch.sin(2 * math.pi * ratio * pitch * t)
        notes *= (t / 0.002).clamp(max=1)
        return 0.8 * notes / notes.abs().amax(1, keepdim=True)

    def _play(self, score: dict[str, Tensor]) -> Tensor:
        """Waveform (n, samples): each hit's note, from the sample nearest its impact on."""
        starts = (score["times"] * media.SAMPLE_RATE).round().long().clamp(max=self.samples)
        late = torch.cat([torch.zeros_like(self.notes), self.notes], 1).unfold(1, self.samples, 1)
        waveform = 0
        for start, bar, gain in zip(starts.T, score["bars"].T, score["loudness"].T, strict=True):
            waveform = waveform + gain[:, None] * late[bar, self.samples - start]  # the note, after silence up to start
        return waveform.clamp(-1, 1)
