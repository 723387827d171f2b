"""Weights on disk, and the models rebuilt from them.

A run folder holds `model.pt` (what was trained: its kind, the network's options, EMA weights in half precision) and,
for a discriminator, copies of the two base models it was trained on, `video.pt` and `audio.pt`: the folder alone is
enough to sample from. `pretrained/` is such a folder. `last.pt` is all that resuming needs.

Used by train.py to write them, by sample.py and evaluate.py to read them.
"""

import io
import os
from pathlib import Path

import torch
from torch import nn

from discriminator import JointDiscriminator
from files import atomic
from score import VPSDE, FrozenModel
from unet import AudioUNet, JointUNet, VideoUNet

NETWORKS = {"video": VideoUNet, "audio": AudioUNet, "joint": JointUNet, "discriminator": JointDiscriminator}
PRETRAINED = Path(__file__).parent / "pretrained"


def options_of(kind: str, world) -> dict:
    """What a network of this kind is built with for the clips of a world (data.py, clips.py, latents.py)."""
    if kind != "discriminator":
        return {"size": world.size}
    video_shape, audio_shape = world.shapes
    return {"video_shape": video_shape, "audio_shape": audio_shape, "text": getattr(world, "text", (0, 0))}


def save(path: Path, state: dict) -> None:
    buffer = io.BytesIO()  # a full disk fails in one write of bytes, not somewhere inside torch
    torch.save(state, buffer)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())  # a machine that goes down after the rename has the whole file


def load(path: Path, device: str = "cpu", mmap: bool = False) -> dict:
    """A dict of tensors and plain values; anything else in the file, code above all, is refused.

    With mmap its tensors stay on disk until they are read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: make it with train.py, or name another run")
    try:
        return torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"{path} cannot be read as a checkpoint ({reason}): train again or restore it") from error


def load_model(path: Path, kind: str, device: str = "cpu") -> dict:
    """The state of a model.pt that is of the given kind."""
    state = load(path, device)
    if not isinstance(state, dict) or not {"kind", "options", "model"} <= state.keys():
        raise ValueError(f"{path} is not a model.pt of this project")
    if state["kind"] != kind:
        raise ValueError(f"{path} holds a {state['kind']} model where a {kind} model is needed")
    return state


def load_network(path: Path, kind: str, device: str = "cpu") -> nn.Module:
    """The network of the given kind whose weights are in path, in eval mode; errors name what does not fit."""
    state = load_model(path, kind, device)
    try:
        network = NETWORKS[kind](**state["options"]).to(device)
    except TypeError as error:
        raise ValueError(f"{path} is of another version of this project ({error}): train again") from error
    fill(network, state["model"], path)
    return network.eval()


def fill(network: nn.Module, weights: dict, path: Path) -> None:
    """Give a network the weights that are from path."""
    if unfit := differences(weights, network.state_dict()):
        raise ValueError(f"{path} is no {type(network).__name__}: {unfit}")
    network.load_state_dict({name: value.float() for name, value in weights.items()})


def differences(weights: dict, needed: dict) -> str:
    """By name, the first three tensors whose shapes differ, and how many more; empty where all fit."""
    found, wanted = ({name: tuple(x.shape) for name, x in tensors.items()} for tensors in (weights, needed))
    names = [name for name in wanted | found if found.get(name) != wanted.get(name)]
    told = [f"{name} is {found.get(name, 'missing')}, needed is {wanted.get(name, 'none')}" for name in names[:3]]
    return "; ".join(told) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def load_base(path: Path, kind: str, size: int, sde: VPSDE, device: str = "cpu") -> FrozenModel:
    """A base model trained by train.py, frozen, for clips of the given size."""
    network = load_network(path, kind, device)
    if network.size != size:
        raise ValueError(
            f"{path} is for --size {network.size}, not {size}: train.py {kind} --size {size} makes another"
        )
    return FrozenModel(network, sde, prediction="x0")


def load_run(run: Path, device: str = "cpu") -> tuple[FrozenModel, FrozenModel, nn.Module]:
    """The two frozen base models and the discriminator of a run folder."""
    if models := load(run / "model.pt").get("models"):
        raise ValueError(f"{run} is for {models['video']} and {models['audio']}: only sample.py --prompt knows them")
    sde, discriminator = VPSDE(), load_network(run / "model.pt", "discriminator", device).requires_grad_(False)
    bases = (
        load_base(run / f"{kind}.pt", kind, discriminator.video_shape[-1], sde, device) for kind in ("video", "audio")
    )
    return *bases, discriminator
