"""Pipelines of the real diffusers classes, tiny and randomly initialised, written as folders by save_pretrained."""

from pathlib import Path

import diffusers
import torch
import transformers

LETTERS = [chr(k) for k in range(33, 127)] + ["Ġ"]
SCHEDULES = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-3, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero_snr": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
}


def scheduler(name: str = "scaled_linear", prediction: str = "epsilon", **options) -> diffusers.DDIMScheduler:
    options = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1} | SCHEDULES[name] | options
    return diffusers.DDIMScheduler(prediction_type=prediction, **options)


def autoencoder(channels: int, latents: int) -> diffusers.AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(
        in_channels=channels, out_channels=channels, latent_channels=latents, block_out_channels=(8, 8),
        norm_num_groups=4, sample_size=16, scaling_factor=0.5, **blocks,
    )  # fmt: skip


def clip_text(width: int = 16) -> tuple[transformers.CLIPTokenizer, transformers.CLIPTextModel]:
    words = LETTERS + [f"{c}</w>" for c in LETTERS] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: k for k, word in enumerate(words)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=len(vocab) - 2, eos_token_id=len(vocab) - 1,
        pad_token_id=len(vocab) - 1,
    )  # fmt: skip
    return tokenizer, transformers.CLIPTextModel(config)


def roberta_tokenizer(length: int = 16) -> transformers.RobertaTokenizer:
    words = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS, "<mask>"]
    vocab = {word: k for k, word in enumerate(words)}
    return transformers.RobertaTokenizer(vocab=vocab, merges=[], model_max_length=length)


def clap_text_config(vocab: int, width: int = 16) -> transformers.ClapTextConfig:
    return transformers.ClapTextConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=width, max_position_embeddings=40, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip


def vocoder(mels: int = 16) -> transformers.SpeechT5HifiGan:
    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=mels, sampling_rate=16_000, upsample_initial_channel=16, upsample_rates=[10, 16],
        upsample_kernel_sizes=[20, 32], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
    )  # fmt: skip
    return transformers.SpeechT5HifiGan(config)


def clap_model(vocab: int) -> transformers.ClapModel:
    audio_config = {
        "hidden_size": 16, "patch_embeds_hidden_size": 16, "projection_dim": 16, "depths": [1, 1],
        "num_attention_heads": [2, 2], "num_hidden_layers": 2, "window_size": 8, "spec_size": 32, "patch_size": 4,
        "patch_stride": 4, "num_mel_bins": 16,
    }  # fmt: skip
    text_config = clap_text_config(vocab).to_dict()
    return transformers.ClapModel(
        transformers.ClapConfig(text_config=text_config, audio_config=audio_config, projection_dim=16)
    )


def pooled_unet() -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4, class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=16, class_embeddings_concat=True,
    )  # fmt: skip


def audioldm(folder: Path, schedule: diffusers.DDIMScheduler | None = None) -> Path:
    torch.manual_seed(0)
    tokenizer = roberta_tokenizer()
    pipe = diffusers.AudioLDMPipeline(
        vae=autoencoder(1, 4), text_encoder=transformers.ClapTextModelWithProjection(clap_text_config(len(tokenizer))),
        tokenizer=tokenizer, unet=pooled_unet(), scheduler=schedule or scheduler(), vocoder=vocoder(),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def musicldm(folder: Path, schedule: diffusers.DDIMScheduler | None = None) -> Path:
    torch.manual_seed(4)
    tokenizer = roberta_tokenizer()
    pipe = diffusers.MusicLDMPipeline(
        vae=autoencoder(1, 4), text_encoder=clap_model(len(tokenizer)), tokenizer=tokenizer, unet=pooled_unet(),
        feature_extractor=transformers.ClapFeatureExtractor(), scheduler=schedule or scheduler(), vocoder=vocoder(),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def animatediff(folder: Path, schedule: diffusers.DDIMScheduler | None = None, channels: int = 4) -> Path:
    torch.manual_seed(1)
    tokenizer, text_encoder = clip_text()
    unet = diffusers.UNetMotionModel(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        cross_attention_dim=16, num_attention_heads=2, motion_num_attention_heads=2, norm_num_groups=4,
        motion_max_seq_length=16,
    )  # fmt: skip
    pipe = diffusers.AnimateDiffPipeline(
        vae=autoencoder(3, 4), text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, motion_adapter=None,
        scheduler=schedule or scheduler("linear"),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def stable_diffusion_and_adapter(folder: Path) -> str:
    """An image model and a motion adapter of their own, as AnimateDiff is handed out: BASE+ADAPTER."""
    torch.manual_seed(5)
    tokenizer, text_encoder = clip_text()
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16), norm_num_groups=4,
    )  # fmt: skip
    diffusers.StableDiffusionPipeline(
        vae=autoencoder(3, 4), text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler("linear"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "base")  # fmt: skip
    diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_norm_num_groups=4, motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_max_seq_length=16,
    ).save_pretrained(folder / "adapter")  # fmt: skip
    return f"{folder / 'base'}+{folder / 'adapter'}"


def modelscope(folder: Path, schedule: diffusers.DDIMScheduler | None = None) -> Path:
    torch.manual_seed(2)
    tokenizer, text_encoder = clip_text()
    unet = diffusers.UNet3DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    pipe = diffusers.TextToVideoSDPipeline(
        vae=autoencoder(3, 4), text_encoder=text_encoder, tokenizer=tokenizer, unet=unet,
        scheduler=schedule or scheduler("scaled_linear"),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def audioldm2(folder: Path, schedule: diffusers.DDIMScheduler | None = None) -> Path:
    torch.manual_seed(3)
    tokenizer = roberta_tokenizer()
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS[:-1]]
    tokenizer_2 = transformers.T5Tokenizer(vocab=[(piece, -float(k)) for k, piece in enumerate(pieces)], extra_ids=0)
    tokenizer_2.model_max_length = 16
    t5 = transformers.T5Config(
        vocab_size=len(tokenizer_2) + 8, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    gpt2 = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, n_positions=64, max_new_tokens=4)
    unet = diffusers.AudioLDM2UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=([None, 16, 16],) * 2, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    pipe = diffusers.AudioLDM2Pipeline(
        vae=autoencoder(1, 4), text_encoder=clap_model(len(tokenizer)),
        text_encoder_2=transformers.T5EncoderModel(t5), language_model=transformers.GPT2LMHeadModel(gpt2),
        projection_model=diffusers.AudioLDM2ProjectionModel(16, 16, 16), tokenizer=tokenizer, tokenizer_2=tokenizer_2,
        feature_extractor=transformers.ClapFeatureExtractor(), unet=unet,
        scheduler=schedule or scheduler(), vocoder=vocoder(),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder
