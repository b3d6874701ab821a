"""Models of packages that are in no list of ours, as whoever has one would use them (`make test-models`)."""

import pytest
import torch

import gentickets as gt

pytestmark = pytest.mark.models


def test_an_audio_codec_is_made_smaller_and_comes_back_from_its_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    net = transformers.MimiModel(
        transformers.MimiConfig(
            hidden_size=32,
            num_filters=8,
            upsampling_ratios=[4, 2],
            codebook_size=16,
            codebook_dim=8,
            vector_quantization_hidden_dimension=8,
            num_quantizers=3,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=8,
            intermediate_size=48,
            sampling_rate=16,
            frame_rate=1.0,
            upsample_groups=32,
            sliding_window=8,
            use_cache=False,
        )
    ).eval()
    example = {"encoder": torch.randn(2, 1, 64), "decoder": torch.randn(2, 32, 16)}
    groups = gt.channel_groups(net, example)
    masks = gt.prune(gt.magnitude(net), fraction=0.5, scope="layer", granularity="channel", groups=groups)
    small = gt.shrink(net, masks, example)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())
    gt.save_pretrained(small, tmp_path / "folder", example)
    again = transformers.MimiModel.from_pretrained(tmp_path / "folder").eval()
    with torch.no_grad():
        made, kept = again.encoder(example["encoder"]), small.encoder(example["encoder"])
        torch.testing.assert_close(list(made.values()), list(kept.values()))
    with pytest.raises(gt.errors.GenticketsError, match="decides by values at `"):
        gt.export(small.encoder, example["encoder"], tmp_path / "encoder.pt2")


def test_a_transformer_with_adaptive_norms_is_made_smaller_and_kept(tmp_path):
    diffusers = pytest.importorskip("diffusers")

    def make():
        return diffusers.PixArtTransformer2DModel(
            num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
            cross_attention_dim=32, sample_size=8, patch_size=2, caption_channels=16, use_additional_conditions=False,
        ).eval()  # fmt: skip

    net = make()
    example = {
        "hidden_states": torch.randn(2, 4, 8, 8), "encoder_hidden_states": torch.randn(2, 5, 16),
        "timestep": torch.tensor([3, 7]), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }  # fmt: skip
    groups = gt.channel_groups(net, example)
    masks = gt.prune(gt.magnitude(net), fraction=0.5, scope="layer", granularity="channel", groups=groups)
    small = gt.shrink(net, masks, example)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in net.parameters())
    gt.save_small(small, tmp_path / "small.safetensors", make_model=make)
    again = gt.load_small(tmp_path / "small.safetensors", make_model=make).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**example).sample, small.eval()(**example).sample)
