import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch.testing import assert_close

import checkpoint
import distributed
import many
import objective
import sample
import train
from clips import open_world
from score import VPSDE

ROOT = Path(__file__).parents[1]


def test_without_torchrun_all_is_that_of_one_process():
    assert (distributed.rank(), distributed.count(), distributed.rows(12)) == (0, 1, slice(0, 12))
    assert distributed.agree(0.0, 0.25) == (0.0, 0.25)
    loss = object()
    assert distributed.shared(None, loss) is loss


def gradients(arguments: list[str], k: int) -> dict[str, torch.Tensor]:
    """Of batch k, by parameter; base models in float32, whose rounding does not depend on the rows beside."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    args, sde = train.parse(arguments), VPSDE()
    world = open_world(args.data, args.size)
    network = checkpoint.NETWORKS[args.model](**checkpoint.options_of(args.model, world))
    bases = tuple(checkpoint.load_base(args.bases / f"{kind}.pt", kind, 32, sde) for kind in ("video", "audio"))
    make_batch, loss_of = objective.make_objective(args, network, world, sde, bases)
    batch = make_batch(k)
    if args.model == "joint":  # sums over all pixels, which float32 rounds by their order
        network.double()
        x0, t, eps = batch
        batch = tuple(x.double() for x in x0), t.double(), tuple(e.double() for e in eps)
    step = distributed.shared(network, loss_of)  # kept: its hooks live as long as it
    step(batch)[0].backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


CASES = {  # the discriminator's batch 0 is of the warm-up, where the repairs take no part
    "warm-up": ("discriminator", 0),
    "discriminator": ("discriminator", 9),
    "joint": ("joint", 9),
}


def gradients_of_all(bases: Path) -> dict[str, dict]:
    common, own = ["--batch", "8", "--steps", "20"], ["--warmup", "5", "--bases", str(bases)]
    return {
        name: gradients([model, *common, *(own if model == "discriminator" else [])], k)
        for name, (model, k) in CASES.items()
    }


def one_of_two(rank: int, port: int, bases: Path, out: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    objective.mixed_precision = lambda device, inference=False: torch.autocast("cpu", enabled=False)
    with distributed.processes("cpu"):
        assert distributed.count() == 2 and distributed.rows(8) == slice(4 * rank, 4 * rank + 4)
        assert distributed.agree(float(rank), 1.0 - rank) == (1.0, 1.0)
        torch.save(gradients_of_all(bases), out / f"{rank}.pt")


def test_gradients_on_two_processes_are_those_on_one_with_the_same_global_batch(bases, tmp_path, monkeypatch):
    """Double backprop under DDP, and a base model's plain loss."""
    monkeypatch.setattr(objective, "mixed_precision", lambda *_, **__: torch.autocast("cpu", enabled=False))
    mp.spawn(one_of_two, (29_500 + os.getpid() % 1000, bases, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for case, alone in gradients_of_all(bases).items():
        assert alone.keys() == ranks[0][case].keys()
        scale = max(g.abs().max() for g in alone.values())
        for name, g in alone.items():
            assert torch.equal(ranks[0][case][name], ranks[1][case][name])
            assert_close(ranks[0][case][name] / scale, g / scale, rtol=1e-5, atol=1e-5)


def torchrun(*arguments: str, launched: tuple = ()) -> str:
    """What two processes printed, started by torchrun (with these options), one thread each."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *map(str, launched), "--", *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_restarts_after_a_killed_worker_and_resumes_with_another_number_of_processes(bases, tmp_path):
    """Two processes, one killed in step 3 and both restarted from step 2; stopped after 3 and ended by one, against one
    throughout: nearly, as sums have another order."""
    common = ["--batch", "8", "--warmup", "1", "--bases", str(bases), "--steps", "5", "--lr", "1e-3"]
    script = tmp_path / "killed_in_step_three.py"
    script.write_text(
        "import os, signal, train\nreal = train.progress_of\n"
        "def progress_of(run, args):\n"
        "    if run['step'] == 2 and os.environ['RANK'] == '1' and not train.distributed.RESTARTS:\n"
        "        (args.out.parent / 'killed').touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return 1.0 if run['step'] == 3 else real(run, args)\n"
        "train.progress_of, train.preview, train.figures.save_curves = progress_of, *2 * [lambda *_: None]\n"
        "train.main()\n"
    )
    two, one = tmp_path / "two", tmp_path / "one"
    said = torchrun(script, *common, "--save-minutes", "0", "--out", two, launched=("--max-restarts", "1"))
    assert (tmp_path / "killed").exists() and said.count("discriminator: 3 steps") == 1
    assert checkpoint.load(two / "last.pt")["step"] == 3
    train.train(train.parse(["--resume", str(two)]))
    train.train(train.parse([*common, "--out", str(one)]))
    two, one = (checkpoint.load(run / "last.pt") for run in (two, one))
    assert two["step"] == one["step"] == 5
    torch.manual_seed(0)
    initial = checkpoint.NETWORKS["discriminator"]().state_dict()
    moved = sum((one["model"][name] - initial[name]).square().sum() for name in initial).sqrt()
    apart = sum((one["model"][name] - two["model"][name]).square().sum() for name in initial).sqrt()
    assert apart < 0.02 * moved


def test_two_processes_sample_the_clips_of_one(bases, tmp_path, monkeypatch):
    """Chunks of one clip, of which three are made; files equal byte for byte, as each chunk is worked on alike."""
    script = tmp_path / "small_chunks.py"
    script.write_text(
        "import sample, many\nfrom functools import partial\nsample.generate = partial(many.generate, chunk=1)\n"
        "sample.figures.save_sheet = lambda path, *_: path.touch()\n"
        "import torch; torch.set_num_threads(1)\nsample.main()\n"
    )
    options = ["--n", "3", "--steps", "1", "--run", str(bases)]
    torchrun(script, *options, "--out", tmp_path / "two")
    monkeypatch.setattr(sample, "generate", partial(many.generate, chunk=1))
    sample.main([*options, "--out", str(tmp_path / "one")])
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 2 * 3 * 3 + 4 and names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in set(names) - {"report.json", "manifest.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_rows_that_cannot_be_shared_are_an_error(monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 3)
    with pytest.raises(ValueError, match="8 rows cannot be shared by 3 processes"):
        distributed.rows(8)


def test_a_process_sends_no_more_than_the_clips_it_drew(monkeypatch):
    """Given clips come back as views of all of them: 16 chunks of 2,000 would be sent as 16 times 2,000 clips."""
    sent = []
    monkeypatch.setattr(distributed, "union", lambda parts: sent.append(parts) or parts)
    given = {"given_video": torch.randn(6, 2), "given_audio": torch.randn(6, 3)}

    def draw(*shapes, generator, given_video, given_audio):
        return given_video, given_audio

    video, audio, _ = many.generate(draw, [(2,), (3,)], 0, 6, "given", given, chunk=2)
    assert torch.equal(video, given["given_video"]) and torch.equal(audio, given["given_audio"])
    assert all(x.untyped_storage().nbytes() == 4 * x.numel() for part in sent[0].values() for x in part)
