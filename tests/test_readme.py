import ast
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import evaluate
import sample
import train

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
QUOTED = re.findall(r"`(\w+\.py)`, `([\w.]+)`[^`]*?(?:`[^`\n]*`[^`]*?)*?\n\n```python\n(.*?)```", README, re.DOTALL)


def source_of(file: str, name: str) -> str:
    """The lines of a function or class, or of Class.method."""
    text = (ROOT / file).read_text()
    node = ast.parse(text)
    for part in name.split("."):
        node = next(child for child in node.body if getattr(child, "name", None) == part)
    return "\n".join(text.split("\n")[node.lineno - 1 : node.end_lineno])


def test_each_step_quotes_code():
    assert [f"{file} {name}" for file, name, _ in QUOTED] == [
        "score.py VPSDE",
        "discriminator.py JointDiscriminator.pair",
        "discriminator.py discriminator_loss",
        "guidance.py JointEps.guided",
        "guidance.py denoise",
        "climb.py climb",
    ]


@pytest.mark.parametrize(("file", "name", "quoted"), QUOTED, ids=[name for _, name, _ in QUOTED])
def test_quoted_lines_are_those_of_the_file(file, name, quoted):
    lines = source_of(file, name).split("\n")
    for part in quoted.rstrip("\n").split("\n\n"):
        wanted = part.split("\n")
        found = ["\n".join(lines[k : k + len(wanted)]) for k in range(len(lines))]
        assert part in [textwrap.dedent(some) for some in found], part
    assert 3 <= len([line for line in quoted.split("\n") if line]) <= 8


class Denoiser(nn.Module):
    """A network of somebody else: one convolution."""

    def __init__(self, shape: tuple):
        super().__init__()
        self.mix = nn.Linear(shape[0], shape[0])

    def forward(self, xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.mix(xt.transpose(1, -1)).transpose(1, -1)


def test_the_ten_lines_guide_networks_and_data_of_ones_own():
    code = re.search(r"```python\n(import torch\n.*?)```", README, re.DOTALL)[1]
    lines = [line for line in code.split("\n") if line and "import" not in line]
    assert len(lines) == 10
    torch.manual_seed(0)
    shapes = (4, 8, 16, 16), (1, 32, 64)
    clips = [tuple(torch.randn(4, *shape) for shape in shapes) for _ in range(3)]
    space = {"my_video_network": Denoiser(shapes[0]), "my_audio_network": Denoiser(shapes[1]), "my_clips": clips}
    start = {name: value.clone() for name, value in space["my_video_network"].state_dict().items()}
    exec(code, space)
    assert space["video"].shape == (2, *shapes[0]) and space["audio"].shape == (2, *shapes[1])
    assert space["video"].isfinite().all() and {"bce", "noise"} <= space["parts"].keys()
    assert all(state["step"] == 3 for state in space["optimizer"].state.values())
    for name, value in space["my_video_network"].state_dict().items():
        assert torch.equal(value, start[name])


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere_and_pictures_are_small_and_told(page):
    text = page.read_text()
    for alt, target in re.findall(r"!\[(.*?)\]\((.*?)\)", text):
        assert len(alt) > 60 and (page.parent / target).stat().st_size < 400_000, target
    headings = {
        place: {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)", file, re.M)}
        for place in PAGES
        for file in [place.read_text()]
    }
    for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)]+)\)", text):
        if not target.startswith("http"):
            file, _, heading = target.partition("#")
            found = (page.parent / file).resolve()
            assert found.exists() and (not heading or heading in headings[found]), target


def test_each_file_has_its_concept_in_the_table():
    table = README[README.index("| file | one concept |") :]
    assert [path.name for path in sorted(ROOT.glob("*.py")) if f"`{path.name}`" not in table] == []


def commands() -> list[str]:
    lines = [line.split("  #")[0] for page in PAGES for line in page.read_text().split("\n") if line.startswith("    ")]
    return sorted({found for line in lines for found in re.findall(r"(?:python|--) (\w\S*\.py[^&]*)", line)})


@pytest.mark.parametrize("command", commands())
def test_commands_name_scripts_and_options_that_exist(command):
    name, *argv = shlex.split(command)
    assert (ROOT / name).exists()
    parse = {"train.py": train.parse, "sample.py": sample.parse, "evaluate.py": evaluate.parse}
    if name in parse and "--resume" not in argv:
        parse[name](argv)
