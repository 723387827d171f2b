"""Clips as files, and index.html: guided and independent ones side by side, no network needed.

Used by sample.py and prompted.py.
"""

import html
from pathlib import Path
from string import Template

from torch import Tensor

import figures
import media
from files import atomic

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
  .clip { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; margin: 1.5rem 0; }
  figure { margin: 0; font-size: 0.9rem; }
  video { width: 100%; image-rendering: pixelated; border-radius: 6px; }
  img { width: 100%; height: 5rem; object-fit: fill; border-radius: 6px; }
  @media (max-width: 34rem) { .clip { grid-template-columns: 1fr; } }
</style>
<h1>$title</h1>
<p>$summary</p>
$rows
</html>
""")

FIGURE = Template("""<figure>
<video src="$video" controls loop playsinline preload="metadata" aria-label="$label"></video>
<img src="$picture" alt="Spectrogram of $label: time to the right, pitch upwards">
<figcaption>$label</figcaption>
</figure>""")


def write_clips(
    out: Path, system: str, frames: Tensor, waveforms: Tensor, spectrograms: Tensor, fps: int
) -> list[dict[str, str]]:
    """Each clip as SYSTEM_00.mp4, .wav and .png; returns their names on the page."""
    names, scale = [], max(1, 256 // frames.shape[2])
    for k in range(len(frames)):
        stem = f"{system}_{k:02d}"
        media.save_mp4(out / f"{stem}.mp4", frames[k], waveforms[k], fps, scale)
        media.save_wav(out / f"{stem}.wav", waveforms[k])
        figures.save_spectrogram(out / f"{stem}.png", spectrograms[k, 0])
        names.append({"video": f"{stem}.mp4", "picture": f"{stem}.png"})
    return names


def save_page(path: Path, title: str, summary: str, clips: list[dict[str, dict[str, str]]]) -> None:
    """`clips` holds per row, by label, the file names of a video and of its spectrogram, relative to the page."""
    rows = []
    for clip in clips:
        named = [{"label": label, **files} for label, files in clip.items()]
        figures = [FIGURE.substitute({key: html.escape(value) for key, value in names.items()}) for names in named]
        rows.append('<div class="clip">\n' + "\n".join(figures) + "\n</div>")
    page = PAGE.substitute(title=html.escape(title), summary=html.escape(summary), rows="\n".join(rows))
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
