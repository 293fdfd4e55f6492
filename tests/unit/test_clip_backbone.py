"""The trunk: equal to open_clip, any size and batch, text cut where it ends, weights loaded safely."""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest, architectures, loading, published
from anomalib_zsclip.clip.image_tower import attend, feed_forward, layer_norm, project_heads
from anomalib_zsclip.clip.text_cache import cache_folder, embed_texts
from anomalib_zsclip.errors import ArgumentError, BackboneError

SENTENCES = ["a photo of a cat", "object", "a damaged and scratched metal nut with a very long description, really"]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def state_dict_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


# ------------------------------------------------------------------ towers
@torch.no_grad()
def test_image_embedding_equals_open_clip(tiny: ClipBackbone, tiny_clip: nn.Module, images: Tensor) -> None:
    assert torch.allclose(tiny(images), tiny_clip.encode_image(images), atol=1e-5)


@torch.no_grad()
def test_text_embedding_equals_open_clip(tiny: ClipBackbone, tiny_clip: nn.Module) -> None:
    expected = tiny_clip.encode_text(tiny.tokenize(SENTENCES))
    assert torch.allclose(tiny.encode_text(SENTENCES), expected, atol=1e-5)
    unit = tiny.encode_text(SENTENCES, normalize=True, batch_size=2)
    assert torch.allclose(unit, nn.functional.normalize(expected, dim=-1), atol=1e-5)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu"])
@torch.no_grad()
def test_architectures_of_open_clip_give_its_own_embeddings(name: str) -> None:
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 2  # the real widths, fewer blocks
    model = open_clip.model.CLIP(**{key: value for key, value in config.items() if key != "custom_text"}).eval()
    backbone = ClipBackbone(architectures.build_model(config, model.state_dict(), "the test"))
    image = torch.randn(1, 3, backbone.image_size, backbone.image_size)
    assert torch.allclose(backbone(image), model.encode_image(image), atol=1e-5)
    assert torch.allclose(backbone.encode_text(SENTENCES), model.encode_text(backbone.tokenize(SENTENCES)), atol=1e-5)


@torch.no_grad()
def test_tokens_are_the_residual_stream_of_the_blocks(tiny: ClipBackbone, tiny_clip: nn.Module, images: Tensor) -> None:
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _module, _args, output: seen.append(output))
        for block in tiny_clip.visual.transformer.resblocks
    ]
    tiny_clip.encode_image(images)
    for hook in hooks:
        hook.remove()
    features = tiny.forward_intermediates(images, FeatureRequest.of(tokens=[1, 2, 3, 4]))
    assert features.grid == (4, 4)
    for block, output in enumerate(seen, start=1):
        batch_first = output if output.shape[0] == len(images) else output.transpose(0, 1)
        assert torch.allclose(features.tokens[block], batch_first, atol=1e-5)
    assert torch.allclose(features.class_token, features.tokens[4][:, 0], atol=1e-5)


@torch.no_grad()
def test_value_value_sums_are_sums_of_single_blocks(tiny: ClipBackbone, images: Tensor) -> None:
    single = [(block, block) for block in range(1, 5)]
    features = tiny.forward_intermediates(images, FeatureRequest.of(tokens=[1], value_value=[*single, (2, 4), (1, 2)]))
    total = sum(features.value_value[block, block] for block in range(2, 5))
    assert torch.allclose(features.value_value[2, 4], total, atol=1e-5)
    # By its definition, from the tokens of the block before.
    block = tiny.clip.visual.transformer.resblocks[1]
    _, _, value = project_heads(layer_norm(features.tokens[1], block.ln_1), block.attn)
    assert torch.allclose(features.value_value[2, 2], attend(value, value, value, block.attn), atol=1e-5)


@torch.no_grad()
def test_the_class_token_alone_passes_the_last_block_unchanged(tiny: ClipBackbone, images: Tensor) -> None:
    short = tiny.forward_intermediates(images)
    full = tiny.forward_intermediates(images, FeatureRequest.of(tokens=[4]))
    assert torch.allclose(short.image_embedding, full.image_embedding, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (8, 8), (64, 96), (37, 45)])
@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(tiny: ClipBackbone, size: tuple[int, int]) -> None:
    images = torch.randn(3, 3, *size)
    request = FeatureRequest.of(tokens=[4], value_value=[(1, 4)])
    together = tiny.forward_intermediates(images, request)
    alone = tiny.forward_intermediates(images[1:2], request)
    assert together.grid == (size[0] // 8, size[1] // 8)
    assert torch.allclose(together.image_embedding[1], alone.image_embedding[0], atol=1e-5)
    assert torch.allclose(together.value_value[1, 4][1], alone.value_value[1, 4][0], atol=1e-5)


@torch.no_grad()
def test_windows_of_the_whole_image_give_its_embedding(tiny: ClipBackbone, images: Tensor) -> None:
    stream = tiny.forward_intermediates(images, FeatureRequest.of(tokens=[0])).tokens[0]
    everything = torch.arange(16).unsqueeze(0)
    assert torch.allclose(tiny.embed_windows(stream, everything)[:, 0], tiny(images), atol=1e-5)
    windows = torch.tensor([[0, 1, 4, 5], [10, 11, 14, 15], [5, 6, 9, 10]])
    assert torch.allclose(tiny.embed_windows(stream, windows, chunk=1), tiny.embed_windows(stream, windows), atol=1e-5)


# ------------------------------------------------------------------ positions and sizes
@torch.no_grad()
def test_another_size_never_changes_the_weights(tiny: ClipBackbone, images: Tensor) -> None:
    before = tiny.clip.visual.positional_embedding.clone()
    first = tiny(images)
    tiny(torch.randn(1, 3, 56, 72))
    assert torch.equal(tiny.clip.visual.positional_embedding, before)
    assert torch.equal(tiny(images), first)


@pytest.mark.parametrize(("mode", "antialias"), [("bicubic", True), ("bilinear", False)])
def test_positions_are_interpolated_as_the_papers_do(tiny_clip: nn.Module, mode: str, antialias: bool) -> None:
    backbone = ClipBackbone(tiny_clip, position_mode=mode)
    weights = tiny_clip.visual.positional_embedding.detach()
    square = weights[1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(square, (3, 6), mode=mode, align_corners=False, antialias=antialias)
    result = backbone.positional_embedding((24, 48))
    assert torch.allclose(result[1:], expected[0].flatten(1).T, atol=1e-6)
    assert torch.equal(result[0], weights[0])


def test_a_remainder_is_dropped_with_one_warning(tiny_clip: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    backbone = ClipBackbone(tiny_clip)
    image = torch.randn(1, 3, 35, 46)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        result = backbone(image)
        backbone(image)
    assert len(caplog.records) == 1
    assert "32x40" in caplog.text
    assert "40x48" in caplog.text
    assert torch.allclose(result, backbone(image[:, :, :32, :40]), atol=1e-6)


def test_too_small_images_and_wrong_shapes_are_refused(tiny: ClipBackbone) -> None:
    with pytest.raises(ArgumentError, match="smaller than one patch of 8x8"):
        tiny(torch.zeros(1, 3, 7, 32))
    with pytest.raises(ArgumentError, match=re.escape("[B, 3, H, W]")):
        tiny(torch.zeros(3, 32, 32))


@pytest.mark.parametrize(
    "request_", [FeatureRequest.of(tokens=[5]), FeatureRequest.of([], [0]), FeatureRequest.of(value_value=[(3, 2)])]
)
def test_requests_outside_the_tower_are_refused(tiny: ClipBackbone, request_: FeatureRequest, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"outside the image tower|must not come after"):
        tiny.forward_intermediates(images, request_)


# ------------------------------------------------------------------ frozen, precision
def test_the_backbone_is_frozen(tiny: ClipBackbone) -> None:
    tiny.train()
    assert not tiny.clip.training
    assert not any(parameter.requires_grad for parameter in tiny.parameters())


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
@torch.no_grad()
def test_reduced_precision_stays_close(tiny_clip: nn.Module, images: Tensor, precision: str, tolerance: float) -> None:
    exact = ClipBackbone.from_state_dict(state_dict_of(tiny_clip), heads=(2, 2))
    reduced = ClipBackbone.from_state_dict(state_dict_of(tiny_clip), heads=(2, 2)).set_precision(precision)
    request = FeatureRequest.of(value_value=[(1, 4)])
    a, b = (backbone.forward_intermediates(images, request) for backbone in (exact, reduced))
    assert b.image_embedding.dtype == b.value_value[1, 4].dtype == torch.float32
    assert (a.image_embedding - b.image_embedding).abs().max() < tolerance * a.image_embedding.abs().max()
    assert torch.equal(reduced.encode_text(SENTENCES), exact.encode_text(SENTENCES))


# ------------------------------------------------------------------ text
@torch.no_grad()
def test_gradients_reach_learned_prompts(tiny: ClipBackbone) -> None:
    ids = tiny.tokenize(SENTENCES[:2])
    with torch.enable_grad():
        embeddings = tiny.embed_tokens(ids).clone().requires_grad_()
        deep = torch.zeros(2, 32, requires_grad=True)
        tiny.encode_prompts(embeddings, ids.argmax(-1), [deep]).sum().backward()
    assert embeddings.grad.abs().sum() > 0
    assert deep.grad.abs().sum() > 0


@pytest.mark.parametrize("text", ["x" * 10_000, "nul \x00 and \x1b[31m control", "🔩 schräg ⚙️", " ", "{}{}%s\\n"])
def test_odd_sentences_have_finite_embeddings(tiny: ClipBackbone, text: str) -> None:
    assert tiny.encode_text([text, "object"]).isfinite().all()


def test_no_sentence_is_an_error(tiny: ClipBackbone) -> None:
    with pytest.raises(ArgumentError, match="at least one sentence"):
        tiny.encode_text([])
    with pytest.raises(ArgumentError, match="list"):
        tiny.encode_text("one string")


def test_cached_text_is_the_same_and_damage_is_mended(
    tiny: ClipBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALIB_ZSCLIP_CACHE", str(tmp_path / "new"))
    first = embed_texts(tiny, SENTENCES)
    (file,) = cache_folder().iterdir()
    monkeypatch.setattr(ClipBackbone, "encode_text", lambda *_args, **_kwargs: pytest.fail("not read from the cache"))
    assert torch.equal(embed_texts(tiny, SENTENCES), first)
    monkeypatch.undo()
    monkeypatch.setenv("ANOMALIB_ZSCLIP_CACHE", str(tmp_path / "new"))
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(embed_texts(tiny, SENTENCES), first)
    assert torch.equal(embed_texts(tiny, SENTENCES), first)


def test_an_unwritable_cache_is_only_a_warning(
    tiny: ClipBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ANOMALIB_ZSCLIP_CACHE", str(tmp_path / "file" / "folder"))
    assert embed_texts(tiny, SENTENCES).shape == (3, 48)
    assert "cannot be cached" in caplog.text


# ------------------------------------------------------------------ loading
def test_only_the_built_in_model_looks_at_larger_images_than_its_native_ones(tiny: ClipBackbone) -> None:
    assert tiny.default_size == tiny.image_size
    builtin = ClipBackbone.load("builtin")
    assert (builtin.image_size, builtin.default_size) == (128, 192)


def test_the_architecture_is_read_off_the_state_dict(tiny_clip: nn.Module, images: Tensor) -> None:
    backbone = ClipBackbone.from_state_dict(state_dict_of(tiny_clip), heads=(2, 2))
    assert (backbone.layers, backbone.width, backbone.patch_size, backbone.image_size) == (4, 64, 8, 32)
    assert (backbone.text_layers, backbone.text_width, backbone.embed_dim) == (3, 32, 48)
    assert torch.allclose(backbone(images), tiny_clip.encode_image(images), atol=1e-5)


def test_heads_default_to_width_over_64(tiny_clip: nn.Module) -> None:
    backbone = ClipBackbone.from_state_dict(state_dict_of(tiny_clip))
    assert backbone.clip.visual.transformer.resblocks[0].attn.num_heads == 1
    with pytest.raises(BackboneError, match="heads=7 does not divide"):
        ClipBackbone.from_state_dict(state_dict_of(tiny_clip), heads=7)


@pytest.fixture
def small_vit(monkeypatch: pytest.MonkeyPatch, tiny_clip: nn.Module) -> nn.Module:
    """Makes the name ``ViT-B-32`` stand for the tiny architecture, so that weight files stay small."""
    config = {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
    }
    original = open_clip.get_model_config
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config if name == "ViT-B-32" else original(name))
    return tiny_clip


@pytest.mark.parametrize("form", ["safetensors", "pt", "bin", "wrapped", "half"])
@torch.no_grad()
def test_local_weight_files(small_vit: nn.Module, tmp_path: Path, images: Tensor, form: str) -> None:
    state = state_dict_of(small_vit)
    path = tmp_path / f"weights.{form if form in ('safetensors', 'bin') else 'pt'}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        torch.save({key: value.half() if form == "half" else value for key, value in state.items()}, path)
    backbone = ClipBackbone.load("ViT-B-32", str(path))
    tolerance = 5e-3 if form == "half" else 1e-5
    assert torch.allclose(backbone(images), small_vit.encode_image(images), atol=tolerance)
    assert backbone.identity.pretrained == str(path)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("bomb_went_off"),))


def test_pickled_code_never_runs(small_vit: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**state_dict_of(small_vit), "bomb": Bomb()}, "zip.pt")
    Path("raw.bin").write_bytes(pickle.dumps({"bomb": Bomb()}))
    for file in ("zip.pt", "raw.bin"):
        with pytest.raises(BackboneError, match="not loaded because they can run any code"):
            ClipBackbone.load("ViT-B-32", file)
    assert not Path("bomb_went_off").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_truncated_files_are_named(small_vit: nn.Module, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    save_file(state_dict_of(small_vit), path) if suffix == "safetensors" else torch.save(state_dict_of(small_vit), path)
    whole = path.read_bytes()
    for length in (0, 5, 1000, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(BackboneError, match=re.escape(str(path))):
            ClipBackbone.load("ViT-B-32", str(path))


def test_foreign_weights_are_refused(small_vit: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"

    def refused(state: dict[str, Tensor], match: str) -> None:
        save_file(state, path)
        with pytest.raises(BackboneError, match=match):
            ClipBackbone.load("ViT-B-32", str(path))

    state = state_dict_of(small_vit)
    refused({key: value for key, value in state.items() if key != "ln_final.bias"}, "lacks 1 param.*ln_final.bias")
    refused({**state, "visual.proj": torch.zeros(64, 50)}, r"visual.proj is \(64, 50\) instead of \(64, 48\)")
    refused({**state, "visual.transformer.resblocks.9.ln_1.bias": torch.zeros(3)}, "another architecture")
    refused({**state, "visual.proj": torch.full((64, 48), torch.nan)}, "not finite")
    refused({"something": torch.zeros(2)}, "lacks")


def test_names_and_tags_that_are_wrong() -> None:
    with pytest.raises(BackboneError, match=r"Near matches: .*ViT-B-16"):
        ClipBackbone.load("ViT-B-61", "openai")
    with pytest.raises(BackboneError, match=r"ResNet.*Supported names: .*ViT-L-14-336"):
        ClipBackbone.load("RN50", "openai")
    with pytest.raises(BackboneError, match=r"Near matches: .*openai"):
        ClipBackbone.load("ViT-B-16", "opnai")
    with pytest.raises(BackboneError, match="needs pretrained="):
        ClipBackbone.load("ViT-B-16")
    with pytest.raises(BackboneError, match="no such file"):
        ClipBackbone.load("ViT-B-16", "missing/weights.pt")


def test_a_named_backbone_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(BackboneError, match="neither in the cache nor could they be downloaded"):
        ClipBackbone.load("ViT-B-16", "openai")


def test_auto_falls_back_with_a_warning_nobody_can_overlook(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "is_available", lambda *_args: False)
    backbone = ClipBackbone.load("auto")
    assert backbone.name == "builtin"
    assert "BUILT-IN" in caplog.text
    assert "--model.pretrained" in caplog.text


def test_offline_is_known_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(published.urllib.request, "urlopen", lambda *_a, **_k: pytest.fail("asked the network"))
    assert not published.is_available("ViT-B-16-plus-240", "laion400m_e31")


def test_fingerprints_tell_weights_apart(tiny_clip: nn.Module) -> None:
    state = state_dict_of(tiny_clip)
    one = ClipBackbone.from_state_dict(state, heads=(2, 2))
    same = ClipBackbone.from_state_dict(state_dict_of(tiny_clip), heads=(2, 2))
    state["visual.proj"] = state["visual.proj"] + 1e-3
    other = ClipBackbone.from_state_dict(state, heads=(2, 2))
    assert one.fingerprint == same.fingerprint != other.fingerprint


# ------------------------------------------------------------------ what the weights are run with
def state_of_open_clip(quick: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 4, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
    return state_dict_of(open_clip.model.CLIP(48, vision, text, quick_gelu=quick).eval())


def activation(backbone: ClipBackbone) -> str:
    return backbone.fingerprint.split("-")[1]


@pytest.fixture
def small_names(monkeypatch: pytest.MonkeyPatch, small_vit: nn.Module) -> None:
    """Both names that this test needs stand for the tiny architecture."""
    config = open_clip.get_model_config("ViT-B-32")
    original = open_clip.get_model_config
    names = ("ViT-B-32", "ViT-L-14-336", "ViT-B-16-plus-240")

    def small(name: str) -> dict | None:
        known = original(name)  # newer versions have some names with -quickgelu, older ones have not
        if name in names:
            return config
        quick = known and name.removesuffix("-quickgelu") in names
        return {**config, "quick_gelu": True} if quick else known

    monkeypatch.setattr(open_clip, "get_model_config", small)


@pytest.mark.parametrize(
    ("name", "form", "expected", "warned"),
    [
        ("ViT-B-32", "openai keys", "quickgelu", False),
        ("ViT-B-32", "plain", "gelu", True),
        ("ViT-L-14-336", "plain", "quickgelu", False),
        ("ViT-B-16-plus-240", "plain", "gelu", False),
        ("ViT-L-14-336-quickgelu", "plain", "quickgelu", False),
    ],
)
def test_activation_of_a_local_file(
    small_names: None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    form: str,
    expected: str,
    warned: bool,
) -> None:
    state = state_of_open_clip(quick=True)
    if form == "openai keys":
        state |= {
            "input_resolution": torch.tensor(32),
            "context_length": torch.tensor(77),
            "vocab_size": torch.tensor(9),
        }
    torch.save(state, tmp_path / "weights.pt")
    backbone = ClipBackbone.load(name, str(tmp_path / "weights.pt"))
    assert activation(backbone) == expected
    assert ("-quickgelu" in caplog.text) == warned


def test_openais_archive_is_quick_gelu_under_any_name(small_names: None, tmp_path: Path) -> None:
    class Archive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = Archive()
    for key, value in state_of_open_clip(quick=True).items():
        owner = model
        *path, leaf = key.split(".")
        for part in path:
            if part not in dict(owner.named_children()):
                owner.add_module(part, Archive())
            owner = getattr(owner, part)
        owner.register_buffer(leaf, value)
    torch.jit.script(model).save(str(tmp_path / "ViT-B-32.pt"))
    for name in ("ViT-B-32", "ViT-B-16-plus-240"):
        assert activation(ClipBackbone.load(name, str(tmp_path / "ViT-B-32.pt"))) == "quickgelu"


def test_the_tag_openai_is_quick_gelu(small_names: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(state_of_open_clip(quick=True), tmp_path / "weights.safetensors")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *_a, **_k: str(tmp_path / "weights.safetensors"))
    assert activation(ClipBackbone.load("ViT-B-32", "openai")) == "quickgelu"
    assert activation(ClipBackbone.load("ViT-B-32", "laion2b_s34b_b79k")) == "gelu"


def test_activation_and_heads_belong_to_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_of_open_clip(quick=False)
    usual = ClipBackbone.from_state_dict(state, heads=(2, 2))
    others = [
        ClipBackbone.from_state_dict(state, quick_gelu=True, heads=(2, 2)),
        ClipBackbone.from_state_dict(state, heads=(4, 2)),
        ClipBackbone.from_state_dict(state, heads=(2, 4)),
    ]
    monkeypatch.setenv("ANOMALIB_ZSCLIP_CACHE", str(tmp_path))
    text = embed_texts(usual, SENTENCES)
    assert usual.identity.matches(usual.fingerprint)
    assert usual.identity.matches(usual.fingerprint.split("-")[0]), "as files of the version before have it"
    for other in others:
        assert other.fingerprint != usual.fingerprint
        assert not other.identity.matches(usual.fingerprint)
        assert torch.equal(embed_texts(other, SENTENCES), other.encode_text(SENTENCES, normalize=True)), (
            "own cache entry"
        )
    assert torch.equal(embed_texts(usual, SENTENCES), text)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


@pytest.mark.parametrize("damage", ["download fails", "file is no archive"])
def test_auto_falls_back_when_the_download_fails_after_all(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object, **_kwargs: object) -> str:
        if damage == "download fails":
            raise OSError("connection reset by peer")
        (tmp_path / "weights.pt").write_bytes(b"<html>please log in</html>")
        return str(tmp_path / "weights.pt")

    monkeypatch.setattr(loading, "is_available", lambda *_args: True)
    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    assert ClipBackbone.load("auto").name == "builtin"
    assert "BUILT-IN" in caplog.text
    assert ("connection reset" if damage == "download fails" else "is damaged") in caplog.text


def test_cached_weights_are_found_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(published.urllib.request, "urlopen", lambda *_a, **_k: pytest.fail("asked the network"))
    monkeypatch.setenv("HOME", str(tmp_path))
    config = {"url": "https://example.org/folder/weights-v2.pt"}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_args: config)
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / ".cache" / "clip" / "weights-v2.pt").touch()
    assert published.is_available("ViT-B-32", "some tag")
    config.pop("url")
    config["hf_hub"] = "somebody/something/"
    asked: list[str] = []
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repository, file: asked.append(repository) or str(tmp_path)
    )
    assert published.is_available("ViT-B-32", "some tag")
    assert asked == ["somebody/something"]


@pytest.mark.parametrize(
    ("threads", "images", "parts"),
    [
        (1, 0.5, [1] * 5), (1, 1, [1] * 5), (1, 2.9, [2, 2, 1]), (1, 5, [5]),
        (2, 0, [2, 2, 1]), (2, 1, [2, 2, 1]), (2, 2, [4, 1]), (64, 0, [5]),
    ],
)  # fmt: skip
def test_the_feed_forward_layers_take_as_many_images_at_a_time_as_fit_the_caches(
    tiny: ClipBackbone, monkeypatch: pytest.MonkeyPatch, threads: int, images: float, parts: list[int]
) -> None:
    """``images`` fit the cache of a thread."""
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("anomalib_zsclip.clip.image_tower.HIDDEN_BYTES", int(images * 17 * 4 * 64 * 4))
    mlp, x = tiny.clip.visual.transformer.resblocks[0].mlp, torch.randn(5, 17, 64)
    with torch.no_grad():
        wanted, given = mlp(x), []
        hook = mlp.register_forward_pre_hook(lambda _, inputs: given.append(len(inputs[0])))
        found = feed_forward(x, mlp)
        hook.remove()
    assert given == parts
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("shape", "hidden", "parts"),
    [((5, 577, 192), 768, 5), ((5, 226, 896), 3584, 5), ((256, 10, 896), 3584, 19), ((256, 1, 896), 3584, 2)],
    ids=["built-in, 192 px", "ViT-B-16-plus, 240 px", "its windows", "single tokens"],
)
def test_images_of_default_size_go_one_by_one_and_small_ones_together(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], hidden: int, parts: int
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    given = []

    class Counter(torch.nn.Module):
        c_fc = torch.nn.Linear(1, hidden)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given.append(len(x))
            return x

    assert feed_forward(torch.zeros(shape), Counter()).shape == shape
    assert len(given) == parts
