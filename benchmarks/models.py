"""What a pair of pre-trained models weighs, and what one step with it takes.

    python benchmarks/models.py                                   parameters and GB of weights, from settings alone
    python benchmarks/models.py --measure AnimateDiff             and a training and a sampling step, random weights

Built from the published settings, in float32 on the CPU; nothing is downloaded.
"""

import sys  # isort: skip
from pathlib import Path  # isort: skip

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the modules it shares
import script  # isort: skip, before what takes seconds to import

import argparse
import resource
import time

import torch
from torch import nn

from discriminator import JointDiscriminator, discriminator_loss
from guidance import JointEps
from objective import GROUP
from pairs import perturb_pairs
from pretrained import FRAMES, Denoiser
from prompts import bind, pooled
from schedule import SDE, Pairing, Schedule
from score import FrozenModel

AUDIO = "AudioLDM-S"
TEXT = {"AnimateDiff": 768, "ModelScope": 1024, AUDIO: 512}  # length of a prompt's embedding, of each token for video


def published(name: str) -> dict[str, nn.Module]:
    """The networks of a model, the denoiser first."""
    import diffusers
    import transformers

    def autoencoder(channels: int, latents: int, *widths: int) -> nn.Module:
        return diffusers.AutoencoderKL(
            in_channels=channels, out_channels=channels, latent_channels=latents, block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=2,
        )  # fmt: skip

    if name == AUDIO:
        widths, crossing = (128, 256, 384, 640), ("CrossAttnDownBlock2D",) * 3
        hifigan = transformers.SpeechT5HifiGanConfig(
            model_in_dim=64, upsample_initial_channel=1024, upsample_rates=[5, 4, 2, 2, 2],
            upsample_kernel_sizes=[16, 16, 8, 4, 4],
        )  # fmt: skip
        unet = diffusers.UNet2DConditionModel(
            sample_size=128, in_channels=8, out_channels=8, block_out_channels=widths, cross_attention_dim=widths,
            down_block_types=("DownBlock2D", *crossing), attention_head_dim=8, class_embeddings_concat=True,
            up_block_types=(*(block.replace("Down", "Up") for block in crossing), "UpBlock2D"),
            class_embed_type="simple_projection", projection_class_embeddings_input_dim=TEXT[name],
        )  # fmt: skip
        text = transformers.ClapTextModelWithProjection(transformers.ClapTextConfig())
        vocoder = transformers.SpeechT5HifiGan(hifigan)
        return {"UNet": unet, "VAE": autoencoder(1, 8, 128, 256, 512), "text encoder": text, "vocoder": vocoder}
    layers, heads = (12, 12) if name == "AnimateDiff" else (23, 16)
    config = transformers.CLIPTextConfig(
        hidden_size=TEXT[name], intermediate_size=4 * TEXT[name], num_hidden_layers=layers, num_attention_heads=heads
    )
    if name == "AnimateDiff":
        unet = diffusers.UNetMotionModel(sample_size=64, cross_attention_dim=TEXT[name], num_attention_heads=8)
    else:
        unet = diffusers.UNet3DConditionModel(sample_size=32, cross_attention_dim=TEXT[name])
    return {
        "UNet": unet,
        "VAE": autoencoder(3, 4, 128, 256, 512, 512),
        "text encoder": transformers.CLIPTextModel(config),
    }


def discriminator_of(video: str, size: int) -> JointDiscriminator:
    return JointDiscriminator((4, FRAMES, size // 8, size // 8), (8, 16, 50), (TEXT[video], TEXT[AUDIO]))


def measure(video: str, size: int) -> dict[str, float]:
    """Seconds of a training step on GROUP pairs, and of a guided sampling step of one clip with prompts."""
    import diffusers

    unets = [published(name)["UNet"] for name in (video, AUDIO)]
    schedules = [Schedule(diffusers.DDIMScheduler(beta_schedule=name)) for name in ("linear", "scaled_linear")]
    networks = (Denoiser(*parts, mel) for *parts, mel in zip(unets, schedules, (False, True), strict=True))
    models, discriminator = [FrozenModel(network, SDE) for network in networks], discriminator_of(video, size)
    told = (torch.zeros(GROUP, 77, TEXT[video]),), (torch.zeros(GROUP, TEXT[AUDIO]),)
    pairs = tuple(torch.randn(GROUP, *s) for s in (discriminator.video_shape, discriminator.audio_shape))
    levels = Pairing(*schedules).levels(torch.full((GROUP,), 0.5))
    marks = [time.perf_counter()]
    noisy = perturb_pairs(*models, pairs, levels, conditions=told, text=tuple(map(pooled, told)))
    marks.append(time.perf_counter())
    discriminator_loss(discriminator, SDE, noisy, group=GROUP)[0].backward()
    marks.append(time.perf_counter())
    one = [tuple(c[:1] for c in condition) for condition in told]
    trio = bind(models, discriminator, [(condition, condition) for condition in one], (7.5, 2.5))
    JointEps(*trio)(tuple(x[:1] for x in pairs), tuple(level[:1] for level in levels))
    marks.append(time.perf_counter())
    names = f"base models on {GROUP} pairs, s", "discriminator's step on them, s", "guided step of one clip, s"
    seconds = {name: b - a for name, a, b in zip(names, marks, marks[1:], strict=False)}
    return seconds | {"peak memory, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=("AnimateDiff", "ModelScope"), help="with AudioLDM-S")
    parser.add_argument("--size", type=int, default=256, help="pixels a side (default %(default)s)")
    args = script.parse_options(parser, argv)
    print(f"{'parameters, millions':32} {'UNet':>8} {'VAE':>8} {'text':>8} {'all':>8} {'GB, float16':>12}")
    with torch.device("meta"):
        weights = {
            name: [sum(p.numel() for p in part.parameters()) / 1e6 for part in published(name).values()]
            for name in TEXT
        }
    for name, parts in weights.items():
        print(f"{name:32} {parts[0]:8.1f} {parts[1]:8.1f} {parts[2]:8.1f} {sum(parts):8.1f} {sum(parts) / 500:12.2f}")
    for video in ("AnimateDiff", "ModelScope"):
        both = sum(weights[video] + weights[AUDIO])
        ours = sum(p.numel() for p in discriminator_of(video, args.size).parameters()) / 1e6
        print(f"{video} and {AUDIO}: {both / 500:.2f} GB in float16, {both / 250:.2f} in float32; ours {ours:.2f} M")
    for name, value in measure(args.measure, args.size).items() if args.measure else ():
        print(f"{name:32} {value:8.1f}")


if __name__ == "__main__":
    script.run_main(main)
