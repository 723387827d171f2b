import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")

PATH = Path(__file__).parents[1] / "toy" / "walkthrough.ipynb"


@pytest.fixture(scope="module")
def said() -> str:
    """What the notebook prints when all of it is run anew."""
    notebook = nbformat.read(PATH, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": PATH.parent}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) >= 8
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def numbers(said: str, pattern: str) -> list[float]:
    return [float(x) for x in re.search(pattern.replace("#", r"(-?[\d.]+(?:e-\d+)?)"), said).groups()]


def test_the_notebook_shows_what_its_text_says(said):
    assert numbers(said, "from the joint score: #")[0] < 1e-12
    assert numbers(said, "gradient of L: #")[0] < 0.25
    mean, exact_mean, variance, exact_variance = numbers(said, r"mean # \(exact #\), variance # \(exact #\)")
    assert (exact_mean, exact_variance) == (1.2, 0.36) and abs(mean - 1.2) < 0.12 and abs(variance - 0.36) < 0.06
    estimate, exact = numbers(said, "# nats by the discriminator, # exactly")
    assert exact == 0.511 and abs(estimate - exact) < 0.05


def test_the_solutions_of_the_exercises_hold(said):
    for rho, exact in (("0.95", 1.164), ("-0.5", 0.144)):
        nats, true = numbers(said, f"rho {rho}: # nats, exactly #")
        assert true == exact and abs(nats - exact) < 0.1
    assert numbers(said, r"additive: mean \|d2L/dxdy\| = #") == [0.0]
    assert numbers(said, r"ours: mean \|d2L/dxdy\| = #")[0] > 0.3
    without, bce, both = (
        numbers(said, f"{name}: # of the samples on a mode, error of the score #")
        for name in ("no guidance", "cross-entropy", "both losses")
    )
    assert without[0] < 0.4 and min(bce[0], both[0]) > 0.9 and both[1] < bce[1] < without[1] / 2


def test_the_notebook_is_kept_with_its_pictures_and_three_solved_exercises():
    notebook = nbformat.read(PATH, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert text.count("### Solution") == 3 and text.count("\n## ") >= 8
    assert sum("image/jpeg" in out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", [])) >= 8
    assert PATH.stat().st_size < 250_000
