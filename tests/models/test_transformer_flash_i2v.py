"""Laws of the FlashI2V transformer."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel

from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel


def parent_of(model, tiny_config):
    parent = WanTransformer3DModel(**tiny_config)
    own = parent.state_dict().keys()
    parent.load_state_dict({name: model.state_dict()[name] for name in own})
    return parent.eval()


@torch.no_grad()
def test_untrained_fourier_branch_changes_nothing(make_transformer, tiny_config, inputs, features):
    flash = make_transformer(trained=False)
    expected = parent_of(flash, tiny_config)(*inputs).sample
    assert torch.equal(flash(*inputs, fourier_features=features).sample, expected)


@torch.no_grad()
def test_without_features_a_trained_model_is_plain_wan(make_transformer, tiny_config, inputs):
    flash = make_transformer()
    assert torch.equal(flash(*inputs).sample, parent_of(flash, tiny_config)(*inputs).sample)


@torch.no_grad()
def test_zero_features_are_not_the_same_as_none(make_transformer, inputs, features):
    flash = make_transformer()
    zeros = flash(*inputs, fourier_features=torch.zeros_like(features)).sample
    assert not torch.allclose(zeros, flash(*inputs).sample)


@torch.no_grad()
def test_nothing_is_remembered_between_calls(make_transformer, inputs, features):
    flash = make_transformer()
    before = flash(*inputs).sample
    flash(*inputs, fourier_features=features, frame_indices=torch.tensor([5, 7, 9]))
    assert torch.equal(flash(*inputs).sample, before)


@torch.no_grad()
def test_a_failed_call_leaves_nothing_behind(make_transformer, inputs, features):
    flash = make_transformer()
    before = flash(*inputs).sample
    latents, timestep, _ = inputs
    with pytest.raises(RuntimeError):
        flash(
            latents,
            timestep,
            torch.zeros(2, 5, 3),
            fourier_features=features,
            frame_indices=torch.tensor([5, 7, 9]),
        )
    # Not only overwritten by the next call: the parts themselves are as before.
    counting = flash.rope(inputs[0])
    flash.rope.frame_indices = torch.arange(3)
    assert all(map(torch.equal, counting, flash.rope(inputs[0])))
    assert flash._fourier_features is None
    assert torch.equal(flash(*inputs).sample, before)


@torch.no_grad()
@pytest.mark.parametrize("position_channels", [0, 24])
def test_counting_frame_indices_equal_none(make_transformer, inputs, features, position_channels):
    flash = make_transformer(position_channels=position_channels)
    given = flash(*inputs, fourier_features=features, frame_indices=torch.arange(3)).sample
    assert torch.equal(given, flash(*inputs, fourier_features=features).sample)


@torch.no_grad()
def test_rotary_positions_follow_the_indices(make_transformer, inputs):
    rope = make_transformer().rope
    tokens = 2 * 3
    cosines, sines = rope(torch.zeros(1, 4, 9, 4, 6))
    rope.frame_indices = torch.tensor([2, 0, 8])
    for full, picked in zip((cosines, sines), rope(inputs[0]), strict=True):
        frames = full.unflatten(1, (9, tokens))[:, [2, 0, 8]].flatten(1, 2)
        assert torch.equal(picked, frames)


@torch.no_grad()
def test_rotary_time_is_relative_and_absolute_time_is_not(make_transformer, inputs):
    indices = torch.tensor([1, 2, 5])
    relative, absolute = make_transformer(), make_transformer(position_channels=24)
    torch.testing.assert_close(
        relative(*inputs, frame_indices=indices).sample,
        relative(*inputs, frame_indices=indices + 20).sample,
        atol=1e-4,
        rtol=1e-4,
    )
    assert not torch.allclose(
        relative(*inputs, frame_indices=indices).sample, relative(*inputs).sample, atol=1e-3
    )
    assert not torch.allclose(
        absolute(*inputs, frame_indices=indices).sample,
        absolute(*inputs, frame_indices=indices + 20).sample,
        atol=1e-3,
    )


def test_no_position_channels_means_no_extra_weights(make_transformer):
    names = {name.split(".")[0] for name in make_transformer().state_dict()}
    assert "position_embedding" not in names
    extended = {n.split(".")[0] for n in make_transformer(position_channels=12).state_dict()}
    assert extended - names == {"position_embedding"}


@torch.no_grad()
def test_a_timestep_per_token_generalises_one_per_sample(make_transformer, inputs, features):
    flash = make_transformer()
    latents, timestep, text = inputs
    per_token = timestep[:, None].expand(-1, 3 * 2 * 3)
    torch.testing.assert_close(
        flash(latents, per_token, text, fourier_features=features).sample,
        flash(latents, timestep, text, fourier_features=features).sample,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fourier_features": torch.zeros(2, 4, 1, 4, 6)}, "shaped like"),
        ({"frame_indices": torch.arange(4)}, "must be"),
        ({"frame_indices": torch.tensor([0, 1, 64])}, "must lie"),
        ({"frame_indices": torch.tensor([-1, 0, 1])}, "must lie"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make_transformer, inputs, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_transformer()(*inputs, **arguments)


def test_position_channels_that_do_not_split_are_refused(tiny_config):
    with pytest.raises(ValueError, match="multiple of 6"):
        FlashI2VTransformer3DModel(**tiny_config, position_channels=8)


@torch.no_grad()
@pytest.mark.parametrize("shard", ["10GB", "20KB"])
def test_saving_and_loading_keeps_settings_and_output(
    make_transformer, inputs, features, tmp_path, shard
):
    flash = make_transformer(position_channels=12, conv3x3x3_proj=True)
    flash.save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) > (shard == "20KB")
    loaded = FlashI2VTransformer3DModel.from_pretrained(tmp_path)
    for name, value in flash.config.items():
        if not name.startswith("_"):
            # Tuples come back as lists.
            assert loaded.config[name] == (list(value) if isinstance(value, tuple) else value)
    arguments = {"fourier_features": features, "frame_indices": torch.tensor([0, 3, 4])}
    assert torch.equal(loaded(*inputs, **arguments).sample, flash(*inputs, **arguments).sample)
    first = features[:, :, :1]
    assert torch.equal(loaded.learnable_proj(first), flash.learnable_proj(first))


@torch.no_grad()
def test_half_precision_keeps_the_projection_in_fp32(make_transformer, inputs, features, tmp_path):
    flash = make_transformer(position_channels=12)
    flash.save_pretrained(tmp_path)
    half = FlashI2VTransformer3DModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.learnable_proj.parameters()} == {torch.float32}
    assert half.fourier_embedding[0].weight.dtype == torch.bfloat16
    latents, timestep, text = inputs
    got = half(latents.bfloat16(), timestep, text.bfloat16(), fourier_features=features).sample
    expected = flash(latents, timestep, text, fourier_features=features).sample
    assert (got.float() - expected).norm() < 0.05 * expected.norm()


@torch.no_grad()
def test_eight_bit_storage_spares_the_new_branches(make_transformer, inputs, features):
    flash = make_transformer(position_channels=12)
    flash.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert flash.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
    for branch in (flash.fourier_embedding, flash.learnable_proj, flash.position_embedding):
        assert {p.dtype for p in branch.parameters()} == {torch.float32}


def test_gradients_reach_every_weight_with_and_without_checkpointing(
    make_transformer, inputs, features
):
    flash = make_transformer(position_channels=12).train()
    indices = torch.tensor([0, 4, 6])

    def gradients():
        flash.zero_grad()
        latents, timestep, text = inputs
        shifted = latents - flash.learnable_proj(latents[:, :, :1])
        output = flash(
            shifted, timestep, text, fourier_features=features, frame_indices=indices
        ).sample
        output.square().mean().backward()
        return {name: parameter.grad.clone() for name, parameter in flash.named_parameters()}

    plain = gradients()
    assert all(gradient.abs().sum() > 0 for gradient in plain.values())
    flash.enable_gradient_checkpointing()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], msg=name)
