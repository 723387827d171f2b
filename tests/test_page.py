import functools
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch

import hits
import media
import page
from data import Xylophone

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

CHECK = """<script>
const errors = [], wait = ms => new Promise(done => setTimeout(done, ms));
window.onerror = message => errors.push(message);
window.onload = async () => {
  const row = document.querySelector(".row"), [first, second] = row.querySelectorAll("video");
  const all = [...document.querySelectorAll("video")], button = row.querySelector("button");
  for (let k = 0; k < 100 && all.some(v => v.readyState < 2); k++) await wait(50);
  const found = {ready: all.map(v => v.readyState), seconds: all.map(v => v.duration), width: first.videoWidth};
  found.pictures = [...document.images].map(i => i.naturalWidth);
  const seek = row.querySelector("[type=range]");
  seek.value = 1; seek.dispatchEvent(new Event("input"));
  found.sought = [first.currentTime, second.currentTime];
  found.cursors = [...row.querySelectorAll(".cursor")].map(c => c.style.left);
  found.muted = [[first.muted, second.muted]];
  row.querySelectorAll("[type=radio]")[1].click();
  found.muted.push([first.muted, second.muted]);
  await wait(200); button.click(); await wait(600);
  found.playing = [!first.paused, !second.paused, button.textContent];
  found.apart = Math.abs(first.currentTime - second.currentTime);
  found.moved = first.currentTime - 1;
  found.cursor = parseFloat(row.querySelector(".heard .cursor").style.left);
  button.click(); await wait(50);
  found.paused = [first.paused, second.paused, button.textContent];
  found.tab_stops = [...row.querySelectorAll("button, input")].map(e => (e.focus(), document.activeElement === e));
  console.log("FOUND " + JSON.stringify({...found, errors}) + " END");
};
</script>"""


@functools.cache
def clips() -> tuple:
    frames, waveform, _ = Xylophone().render(4, torch.Generator().manual_seed(3))
    return frames, waveform, media.log_mel(waveform)


def write_page(out: Path) -> list[dict]:
    """Two rows of real clips, each beside another whose sound is that of a third; in the form of sample.py's page."""
    frames, waveform, audio = clips()
    seen, heard = hits.see(media.to_video(frames)), hits.hear(audio)
    rows = [{}, {}]
    for system, order in (("guided", [0, 1]), ("independent", [2, 3])):
        names = page.write_clips(out, system, frames[[0, 1]], waveform[order], audio[order], 8)
        for k, (row, clip) in enumerate(zip(rows, names, strict=True)):
            times = {"seen": [h[0] for h in seen[k]], "heard": [h[0] for h in heard[order[k]]]}
            row[system] = clip | times | {"label": f"{system} {k}"}
    page.save_page(out / "index.html", "Title", "Summary", 2.0, rows)
    return rows


def console(path: Path) -> str:
    """What the page tells of itself, once it has; a browser that tells nothing for a minute is stopped."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]
    options += ["--remote-debugging-port=0", "--enable-logging=stderr", f"--user-data-dir={path.parent / 'profile'}"]
    command, lines = [CHROMIUM, *options, path.as_uri()], []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as browser:
        timer = threading.Timer(60, os.killpg, (browser.pid, signal.SIGKILL))
        timer.start()
        for line in browser.stderr:
            if "CONSOLE" in line:
                lines.append(line)
            if "FOUND" in line:
                break
        timer.cancel()
        os.killpg(browser.pid, signal.SIGKILL)
    assert len(lines) == 1 and "FOUND" in lines[0], lines
    return lines[0].split("FOUND ")[1].split(" END")[0]


def test_page_escapes_what_it_is_told_and_needs_no_network(tmp_path):
    clip = {"guided<u>": {"video": 'a"<b>.mp4', "picture": "a.png", "label": "<script>"}}
    page.save_page(tmp_path / "index.html", "T<i>", "s & t", 2.0, [clip])
    text = (tmp_path / "index.html").read_text()
    assert "a&quot;&lt;b&gt;.mp4" in text and "T&lt;i&gt;" in text and "s &amp; t" in text and "guided&lt;u&gt;" in text
    assert "http" not in text and 'name="viewport"' in text and text.count("<script>") == 1
    assert "Marks:" not in text


def test_marks_stand_where_the_hits_are(tmp_path):
    rows = write_page(tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "Marks: yellow" in text
    for strip in ("seen", "heard"):
        found = re.findall(rf'<div class="{strip}">(.*?)</div>', text, re.DOTALL)
        times = [[float(x) / 50 for x in re.findall(r"<i style=\"left:([\d.]+)%", part)] for part in found]
        wanted = [clip[strip] for row in rows for clip in row.values()]
        assert sum(map(len, wanted)) > 3
        for one, other in zip(times, wanted, strict=True):
            assert one == pytest.approx(other, abs=1.1e-3)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser_both_clips_play_in_step_and_the_switch_chooses_the_sound(tmp_path):
    write_page(tmp_path)
    text = (tmp_path / "index.html").read_text()
    (tmp_path / "check.html").write_text(text.replace("</html>", CHECK + "</html>"))
    found = json.loads(console(tmp_path / "check.html"))
    assert found["errors"] == [] and found["width"] == 256 and all(w > 0 for w in found["pictures"])
    assert all(state >= 2 for state in found["ready"]) and found["seconds"] == pytest.approx([2.0] * 4, abs=0.1)
    assert found["sought"] == [1, 1] and found["cursors"] == ["50%"] * 4
    assert found["muted"] == [[False, True], [True, False]]
    assert found["playing"] == [True, True, "Pause"] and found["paused"] == [True, True, "Play"]
    assert found["moved"] > 0.2 and found["apart"] < 0.1 and found["cursor"] > 60
    assert found["tab_stops"] == [True] * 4
