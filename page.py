"""Clips as files, and index.html: guided and independent ones side by side, in step, no network needed.

Both clips of a row play at once, a cursor runs over both spectrograms, a switch chooses which of the two is heard.
Marks show when a bar was seen to be struck (below the picture) and when a note was heard (on the spectrogram).

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
<link rel="icon" href="data:,">
<title>$title</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
  .row { display: grid; grid-template-columns: 1fr 1fr; gap: 0.5rem 1rem; margin: 2rem 0; }
  .bar { grid-column: 1 / -1; display: flex; flex-wrap: wrap; align-items: center; gap: 0.25rem 1rem; border: 0;
         padding: 0; margin: 0; }
  .bar [type=range] { flex: 1; min-width: 8rem; }
  button { font: inherit; min-width: 5rem; }
  figure { margin: 0; font-size: 0.9rem; }
  video { width: 100%; display: block; image-rendering: pixelated; border-radius: 6px 6px 0 0; }
  .seen, .heard { position: relative; overflow: hidden; background: #111; }
  .seen { height: 0.7rem; }
  .heard { height: 5rem; border-radius: 0 0 6px 6px; }
  .heard img { width: 100%; height: 100%; display: block; object-fit: fill; }
  i { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: #ffd54a; }
  .heard i { bottom: auto; height: 0.7rem; background: #5ad1ff; }
  .cursor { position: absolute; top: 0; bottom: 0; left: 0; width: 2px; background: #fff; mix-blend-mode: difference; }
  @media (max-width: 34rem) { .row { grid-template-columns: 1fr; } }
</style>
<h1>$title</h1>
<p>$summary</p>
$legend
$rows
<script>
for (const row of document.querySelectorAll(".row")) {
  const videos = [...row.querySelectorAll("video")], figures = row.querySelectorAll("figure");
  const play = row.querySelector("button"), seek = row.querySelector("[type=range]"), seconds = $seconds;
  const show = () => {
    seek.value = videos[0].currentTime;
    videos.forEach((v, k) => figures[k].querySelectorAll(".cursor").forEach(
      c => c.style.left = 100 * Math.min(1, v.currentTime / seconds) + "%"));
  };
  const run = () => {
    for (const v of videos.slice(1))
      if (Math.abs(v.currentTime - videos[0].currentTime) > 0.05) v.currentTime = videos[0].currentTime;
    show();
    if (!videos[0].paused) requestAnimationFrame(run);
  };
  play.onclick = async () => {
    if (!videos[0].paused) return videos.forEach(v => v.pause());
    if (videos[0].ended) videos.forEach(v => v.currentTime = 0);
    await Promise.all(videos.map(v => v.play()));
    run();
  };
  videos[0].onplay = videos[0].onpause = () => play.textContent = videos[0].paused ? "Play" : "Pause";
  videos[0].onended = () => { play.textContent = "Play"; show(); };
  seek.oninput = () => { videos.forEach(v => v.currentTime = seek.value); show(); };
  videos.forEach(v => v.onseeked = show);
  row.querySelectorAll("[type=radio]").forEach((radio, k) => radio.onchange = () =>
    videos.forEach((v, j) => v.muted = j !== k));
}
</script>
</html>
""")

LEGEND = "<p>Marks: yellow, when the picture shows a hit; blue, when the sound has one.</p>"

ROW = Template("""<section class="row" aria-label="$name">
<fieldset class="bar">
<button>Play</button>
<input type="range" min="0" max="$seconds" step="0.01" value="0" aria-label="Time in $name, seconds">
<span>hear</span>
$switches
</fieldset>
$figures
</section>""")

SWITCH = Template('<label><input type="radio" name="$name" $checked> $system</label>')

FIGURE = Template("""<figure>
<video src="$video" $muted playsinline preload="auto" aria-label="$label"></video>
<div class="seen">$seen<div class="cursor"></div></div>
<div class="heard"><img src="$picture" alt="Spectrogram of $label: time to the right, pitch upwards">$heard<div
 class="cursor"></div></div>
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


def marks(times: list[float], seconds: float) -> str:
    return "".join(f'<i style="left:{100 * time / seconds:.1f}%"></i>' for time in times)


def save_page(path: Path, title: str, summary: str, seconds: float, rows: list[dict[str, dict]]) -> None:
    """`rows` holds, by system, the file names of a `video` and its `picture`, relative to the page, and where they are
    known the `label` and the times of hits `seen` and `heard`; `seconds` is how long a clip is."""
    sections = []
    for k, row in enumerate(rows):
        switches, parts, name = [], [], f"clip {k}"
        for system, clip in row.items():
            first, text = not parts, {key: html.escape(clip[key]) for key in ("video", "picture")}
            text["label"] = html.escape(clip.get("label", f"{system} {k}"))
            text |= {key: marks(clip.get(key, []), seconds) for key in ("seen", "heard")}
            parts.append(FIGURE.substitute(text, muted="" if first else "muted"))
            checked = "checked" if first else ""
            switches.append(SWITCH.substitute(name=name, system=html.escape(system), checked=checked))
        inside = {"switches": "\n".join(switches), "figures": "\n".join(parts)}
        sections.append(ROW.substitute(inside, name=name, seconds=f"{seconds:g}"))
    marked = any("seen" in clip for row in rows for clip in row.values())
    text = {"title": html.escape(title), "summary": html.escape(summary), "legend": LEGEND if marked else ""}
    text["rows"] = "\n".join(sections)
    with atomic(path) as temporary:
        temporary.write_text(PAGE.substitute(text, seconds=f"{seconds:g}"), encoding="utf-8")
