"""A model of random weights in the true layout, for the rooms that run one.

Heavy libraries are imported inside: most tests need none of them.
"""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import pytest

from osp_cli import registry

# How long an example takes says how busy the machine is, not whether the property holds.
hypothesis.settings.register_profile(
    "osp", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("osp")

TINY_GEOMETRY = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 48,
    "out_channels": 48,
    "text_dim": 24,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "projection_channels": 8,
    "position_channels": 6,
    "rope_max_seq_len": 64,
}


def tiny_model_spec():
    """The card of osp-mini for smaller pictures and weights of another folder."""
    card = registry.find_model("osp-mini")
    return replace(
        card,
        name="tiny",
        embedded=False,
        weights="tiny",
        sizes=((96, 64), (64, 64), (64, 96)),
        default_size=(96, 64),
        latent_channels=48,
        max_frames=17,
        text_to_video=True,
        whole_weights="",
        # Its stream is too narrow to be told anything. A chunk has twelve pictures.
        realtime=replace(card.realtime, memory="none", latent_frames=3),
    )


def register_tiny():
    """Make `--model tiny` known, in a process of its own that never forgets it."""
    specs = {**registry.model_specs(), "tiny": tiny_model_spec()}
    registry.model_specs = lambda: specs


@pytest.fixture(autouse=True, scope="session")
def state_of_their_own(tmp_path_factory):
    """Tests, and the programs that they start, note their last output apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def tiny_spec():
    """The card of osp-mini for smaller pictures and weights of another folder."""
    return tiny_model_spec()


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory):
    """What `$OSP_HOME` may point at: `models/tiny` holds every part, seeded, none of them zero."""
    import torch
    from torch import nn

    from osp_cli.models.autoencoder_linear import AutoencoderLinear
    from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
    from osp_cli.training.mini_vlm import new_conditioner, save_vlm

    home = tmp_path_factory.mktemp("home")
    folder = home / "models" / "tiny"
    conditioner = new_conditioner(1, TINY_GEOMETRY["text_dim"])
    conditioner.adapter.save_pretrained(folder / "adapter")
    conditioner.image_adapter.save_pretrained(folder / "image_adapter")
    save_vlm(conditioner, folder / "text_encoder")

    torch.manual_seed(2)
    transformer = FlashI2VTransformer3DModel(**TINY_GEOMETRY)
    vae = AutoencoderLinear(
        refine_width=8, refine_blocks=1, latents_mean=[0.1] * 48, latents_std=[0.9] * 48
    )
    for basis in (vae.first_basis, vae.next_basis):
        nn.init.orthogonal_(basis)
    for parameter in (*transformer.parameters(), *vae.refinement.exit.parameters()):
        nn.init.normal_(parameter, std=0.1)
    transformer.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    return home


@pytest.fixture
def tiny_card(tiny_spec, tiny_home, monkeypatch):
    """Makes `--model tiny` known and installed; gives its card."""
    specs = {**registry.model_specs(), "tiny": tiny_spec}
    monkeypatch.setattr(registry, "model_specs", lambda: specs)
    monkeypatch.setenv("OSP_HOME", str(tiny_home))
    return tiny_spec


def tiny_wan_specs():
    """Cards of both kinds of Wan for weights of a few thousand numbers."""
    common = {"sizes": ((64, 48), (48, 64)), "default_size": (64, 48), "max_sequence_length": 24}
    # One that is as cheap as it can be; everything else is the true card's.
    cheap = {"num_frames": 9, "num_inference_steps": 3}
    return {
        name: replace(
            (full := registry.find_model(like)),
            name=name,
            weights=name,
            defaults={**full.defaults, **cheap},
            **common,
        )
        for name, like in (
            ("tiny-t2v", "wan2.1-t2v-1.3b"),
            ("tiny-i2v", "wan2.1-i2v-14b-480p"),
        )
    }


def save_tiny_umt5(folder, text_dim):
    """`tokenizer` and `text_encoder` as in Wan's repositories; one token a letter."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    letters = {chr(code): code - 32 for code in range(32, 127)}
    letterwise = Tokenizer(models.BPE({**letters, "</s>": 95, "<pad>": 96}, merges=[]))
    letterwise.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letterwise.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 95)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=letterwise, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder / "tokenizer")
    config = UMT5Config(vocab_size=97, d_model=text_dim, d_kv=4, d_ff=24, num_heads=2, num_layers=2)
    encoder = UMT5EncoderModel(config)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    encoder.save_pretrained(folder / "text_encoder")


def save_tiny_wan(folder, *, image_to_video):
    """A Wan model in diffusers' layout, as its pipelines save it; no weight is zero."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(3)
    save_tiny_umt5(folder, 16)
    # Of all 16 latent channels of the true one, whose statistics are its defaults.
    vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    images = {"in_channels": 36, "image_dim": 16, "added_kv_proj_dim": 24} if image_to_video else {}
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=16, ffn_dim=32,
        num_layers=2, rope_max_seq_len=64, **images,
    )  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    vae.save_pretrained(folder / "vae")
    transformer.save_pretrained(folder / "transformer")
    if image_to_video:
        config = CLIPVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
            image_size=32, patch_size=8, projection_dim=8,
        )  # fmt: skip
        # As published: with a projection that nobody asks for, and in half precision.
        encoder = CLIPVisionModelWithProjection(config)
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        encoder.half().save_pretrained(folder / "image_encoder")
        # Squeezed and not cropped.
        processor = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
        processor.save_pretrained(folder / "image_processor")


@pytest.fixture(scope="session")
def tiny_wan_home(tmp_path_factory):
    """What `$OSP_HOME` may point at: `models/tiny-t2v` and `models/tiny-i2v`."""
    home = tmp_path_factory.mktemp("wan-home")
    save_tiny_wan(home / "models" / "tiny-t2v", image_to_video=False)
    save_tiny_wan(home / "models" / "tiny-i2v", image_to_video=True)
    return home


@pytest.fixture
def tiny_wan_cards(tiny_wan_home, monkeypatch):
    """Makes `--model tiny-t2v` and `--model tiny-i2v` known and installed; gives their cards."""
    cards = tiny_wan_specs()
    specs = {**registry.model_specs(), **cards}
    monkeypatch.setattr(registry, "model_specs", lambda: specs)
    monkeypatch.setenv("OSP_HOME", str(tiny_wan_home))
    return cards


def tiny_helios_spec():
    """The card of Helios for weights of a few thousand numbers."""
    return replace(
        registry.find_model("helios-14b-distilled"),
        name="tiny-helios",
        weights="tiny-helios",
        sizes=((64, 64),),
        default_size=(64, 64),
        max_sequence_length=24,
    )


def save_tiny_helios(folder):
    """Helios in diffusers' layout, as its pipeline saves it; no weight is zero."""
    import torch
    from diffusers import AutoencoderKLWan, HeliosDMDScheduler, HeliosTransformer3DModel

    torch.manual_seed(5)
    save_tiny_umt5(folder, 32)
    transformer = HeliosTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, rope_dim=(4, 4, 4), text_dim=32, freq_dim=16,
        ffn_dim=32, num_layers=2,
    )  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    transformer.save_pretrained(folder / "transformer")
    # Of all 16 latent channels of the true one, whose statistics are its defaults.
    vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    vae.save_pretrained(folder / "vae")
    HeliosDMDScheduler(
        stages=3, stage_range=[0, 1 / 3, 2 / 3, 1], gamma=1 / 3, use_dynamic_shifting=True,
        time_shift_type="linear",
    ).save_pretrained(folder / "scheduler")  # fmt: skip


@pytest.fixture(scope="session")
def tiny_helios_home(tmp_path_factory):
    """What `$OSP_HOME` may point at: `models/tiny-helios` holds every part of a Helios."""
    home = tmp_path_factory.mktemp("helios-home")
    save_tiny_helios(home / "models" / "tiny-helios")
    return home


@pytest.fixture
def tiny_helios_card(tiny_helios_home, monkeypatch):
    """Makes `--model tiny-helios` known and installed; gives its card."""
    card = tiny_helios_spec()
    specs = {**registry.model_specs(), card.name: card}
    monkeypatch.setattr(registry, "model_specs", lambda: specs)
    monkeypatch.setenv("OSP_HOME", str(tiny_helios_home))
    return card
