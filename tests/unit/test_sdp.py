"""SDP and SDP+ of CLIP-AD."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest
from anomalib_zsclip.errors import ArgumentError, CheckpointError
from anomalib_zsclip.heads.sdp import (
    SdpHead,
    anomaly_probability,
    cosine_similarity,
    default_layers,
    feature_surgery,
    stage_of,
)
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead, layer_losses, original_tokens

WIDTH, EMBED = 32, 16
SIZE = (40, 24)


@lru_cache
def backbone_of(depth: int = 8, width: int = WIDTH, seed: int = 0) -> ClipBackbone:
    """CLIP with random weights: patches of 8 pixels, native size 32."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 0.3) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    state = {
        "visual.conv1.weight": random(width, 3, 8, 8, scale=0.07),
        "visual.class_embedding": random(width),
        "visual.positional_embedding": random(17, width),
        "visual.proj": random(width, EMBED),
        "token_embedding.weight": random(49408, EMBED),
        "positional_embedding": random(77, EMBED),
        "text_projection": random(EMBED, EMBED),
        "logit_scale": torch.tensor(4.6),
    }
    norms = [("visual.ln_pre", width), ("visual.ln_post", width), ("ln_final", EMBED)]
    for prefix, size, blocks in (("visual.transformer", width, depth), ("transformer", EMBED, 1)):
        for index in range(blocks):
            block = f"{prefix}.resblocks.{index}"
            norms += [(f"{block}.ln_1", size), (f"{block}.ln_2", size)]
            layers = (("attn.in_proj_", 3, 1), ("attn.out_proj.", 1, 1), ("mlp.c_fc.", 4, 1), ("mlp.c_proj.", 1, 4))
            for name, rows, columns in layers:
                state[f"{block}.{name}weight"] = random(
                    rows * size, columns * size, scale=0.7 / math.sqrt(columns * size)
                )
                state[f"{block}.{name}bias"] = random(rows * size, scale=0.1)
    for name, size in norms:
        state |= {f"{name}.weight": 1 + random(size), f"{name}.bias": random(size)}
    return ClipBackbone.from_state_dict(state, heads=(2, 2))


def images_of(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def sdp_of(backbone: ClipBackbone, **arguments: object) -> SdpHead:
    return SdpHead(backbone, **{"rvs": "mean", "sigma": 2.0, "text_cache": False, **arguments})


def plus_of(backbone: ClipBackbone, **arguments: object) -> SdpPlusHead:
    return SdpPlusHead(sdp_of(backbone, **arguments), backbone)


def published_streams(backbone: ClipBackbone, images: Tensor, layers: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """What the published program records, in the way it does so: references to streams that later blocks modify."""
    visual = backbone.clip.visual
    depth = backbone.layers
    original = backbone.forward_intermediates(images, FeatureRequest.of(tokens=[0])).tokens[0].clone()
    refined = torch.zeros_like(original)
    recorded = []
    for passed, block in enumerate(visual.transformer.resblocks):
        heads = block.attn.num_heads
        qkv = nn.functional.linear(block.ln_1(original), block.attn.in_proj_weight, block.attn.in_proj_bias)
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))

        def attend(one: Tensor, other: Tensor, value: Tensor = value, block: nn.Module = block) -> Tensor:
            weights = (one @ other.mT / math.sqrt(one.shape[-1])).softmax(dim=-1)
            return block.attn.out_proj((weights @ value).transpose(1, 2).flatten(2))

        own = attend(value, value)
        if passed % (depth / 4) == 0:
            refined = own
        else:
            refined += own
        original += attend(query, key)
        original = original + block.mlp(block.ln_2(original))
        recorded.append((original, refined))
    originals, embeddings = [], []
    for original, refined in (recorded[layer - 1] for layer in layers):
        refined[:, 0] = original[:, 0]
        originals.append(original)
        embeddings.append(visual.ln_post(refined) @ visual.proj)
    return originals, embeddings


@pytest.mark.parametrize(
    ("depth", "layer", "stage"),
    [
        (12, 1, (1, 3)),
        (12, 3, (1, 3)),
        (12, 4, (4, 6)),
        (12, 12, (10, 12)),
        (18, 4, (1, 9)),
        (18, 10, (10, 18)),
        (7, 5, (1, 7)),
        (2, 2, (2, 2)),
        (24, 7, (7, 12)),
    ],
)
def test_a_stage_begins_at_exact_quarters_of_the_depth(depth: int, layer: int, stage: tuple[int, int]) -> None:
    assert stage_of(layer, depth) == stage


@pytest.mark.parametrize(
    ("depth", "layers"), [(12, (3, 6, 9, 12)), (24, (6, 12, 18, 24)), (18, (5, 9, 14, 18)), (3, (1, 2, 3)), (1, (1,))]
)
def test_the_default_layers_end_the_stages(depth: int, layers: tuple[int, ...]) -> None:
    assert default_layers(depth) == layers


@torch.no_grad()
@pytest.mark.parametrize(
    ("depth", "layers"),
    [(8, [2, 4, 6, 8]), (8, [3, 7]), (6, [1, 4, 6]), (9, [4, 9]), (10, [5, 9]), (7, [7]), (12, [12])],
)
def test_tokens_are_those_that_the_published_program_records(depth: int, layers: list[int]) -> None:
    backbone, images = backbone_of(depth), images_of()
    plus = plus_of(backbone, layers=layers)
    originals, refined = published_streams(backbone, images, layers)
    features = backbone.forward_intermediates(images, plus.request(backbone))

    for layer, original, embeddings in zip(layers, originals, refined, strict=True):
        torch.testing.assert_close(original_tokens(features, layer, depth), original, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(plus.sdp.embeddings(features, backbone, layer), embeddings, atol=2e-5, rtol=1e-5)


def test_sdp_lets_only_the_class_token_pass_the_last_block() -> None:
    request = sdp_of(backbone_of()).request(backbone_of())

    assert not request.tokens
    assert 8 not in request.attention_tokens


def test_cosines_do_not_depend_on_length() -> None:
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    embeddings = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])

    assert cosine_similarity(embeddings, text).tolist() == [[[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]]


def test_feature_surgery_by_hand() -> None:
    # The class token weighs the classes with softmax([0, ln 3]) = (1/4, 3/4), doubled.
    cosines = torch.tensor([[[[0.0, math.log(3.0)], [0.2, 0.4]]]])

    normal, anomalous = feature_surgery(cosines)[0, 1].tolist()
    assert anomalous == pytest.approx((1.5 * 0.4 - 0.5 * 0.2) / 2)
    assert normal == pytest.approx(-anomalous)


def test_feature_surgery_adds_up_the_layers() -> None:
    cosines = torch.randn(3, 2, 5, 2, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(feature_surgery(cosines), sum(feature_surgery(cosines[[layer]]) for layer in range(3)))


def test_the_class_token_is_compared_at_a_logit_scale_of_100() -> None:
    assert anomaly_probability(torch.tensor([0.20, 0.21])).item() == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-5)


@torch.no_grad()
def test_calibration_is_monotone_and_undecided_at_zero() -> None:
    head = sdp_of(backbone_of(), image_score="map_max")
    maps = torch.linspace(-0.12, 0.12, 4001).view(1, 1, -1)

    output = head.calibrate(torch.zeros(1), maps)
    assert (output.anomaly_map.diff() > 0).all()
    assert output.anomaly_map[0, 0, 2000].item() == pytest.approx(0.5, abs=1e-4)
    assert output.score.item() == output.anomaly_map.max().item() < 1


@torch.no_grad()
@pytest.mark.parametrize("make", [sdp_of, plus_of])
def test_scores_and_maps_are_probabilities_that_rank_as_the_papers(
    make: Callable[[ClipBackbone], SdpHead | SdpPlusHead],
) -> None:
    backbone = backbone_of()
    head = make(backbone)
    head.setup(backbone, "tile")
    features = backbone.forward_intermediates(images_of(), head.request(backbone))
    output, raw = head(features, backbone, SIZE), head.raw(features, backbone, SIZE)

    assert output.score.shape == (2,)
    assert output.anomaly_map.shape == (2, *SIZE)
    assert all(0 <= value <= 1 for value in (*output.score, *output.anomaly_map.flatten()))
    order = raw.map.flatten().argsort()
    assert (output.anomaly_map.flatten()[order].diff() >= 0).all()
    peak = output.anomaly_map.amax(dim=(1, 2))
    torch.testing.assert_close(output.score, (raw.score + peak) / 2)


@torch.no_grad()
def test_text_may_differ_between_the_images_of_a_batch() -> None:
    backbone, images = backbone_of(), images_of()
    head = plus_of(backbone)
    texts = torch.stack([head.sdp.compile_text(backbone, name) for name in ("tile", "cable")])
    features = backbone.forward_intermediates(images, head.request(backbone))
    together = head.raw(features, backbone, SIZE, texts)

    for index in range(2):
        single = backbone.forward_intermediates(images[[index]], head.request(backbone))
        alone = head.raw(single, backbone, SIZE, texts[index])
        torch.testing.assert_close(together.map[[index]], alone.map, atol=1e-4, rtol=0)
        torch.testing.assert_close(together.score[[index]], alone.score, atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits_and_maps_stay_float32_under_autocast() -> None:
    backbone, images = backbone_of(), images_of()
    head = plus_of(backbone)
    head.setup(backbone, "tile")
    reference = head.raw(backbone.forward_intermediates(images, head.request(backbone)), backbone, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        raw = head.raw(backbone.forward_intermediates(images, head.request(backbone)), backbone, SIZE)
        output = head(backbone.forward_intermediates(images, head.request(backbone)), backbone, SIZE)

    assert {value.dtype for value in (*raw, *output)} == {torch.float32}
    assert (raw.map_zero_shot - reference.map_zero_shot).abs().max() < 0.1 * reference.map_zero_shot.abs().max()


@torch.no_grad()
def test_a_state_dict_brings_text_and_layers() -> None:
    backbone = backbone_of()
    made, loaded = plus_of(backbone), plus_of(backbone)
    made.setup(backbone, "tile")
    made.finish_learning(backbone)
    loaded.load_state_dict(made.state_dict())
    assert loaded.is_learned
    torch.testing.assert_close(loaded.sdp.text_features, made.sdp.text_features)


def test_another_class_name_compiles_other_text() -> None:
    backbone = backbone_of()
    head = sdp_of(backbone)
    head.setup(backbone, "tile")
    tile = head.text_features.clone()
    head.setup(backbone, "cable")

    assert not torch.equal(head.text_features, tile)
    torch.testing.assert_close(head.text_features, head.compile_text(backbone, "cable"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [0, 4]}, r"layers\[0\]=0"),
        ({"layers": [4, 9]}, "blocks 1 to 8"),
        ({"layers": [9]}, r"layers=\[9\]"),
        ({"layers": []}, "at least one block"),
        ({"layers": 4}, "layers=4 must be a list"),
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"image_score": "max"}, "text, map_max, mean"),
        ({"rvs": "median"}, "rvs='median'"),
        ({"rvs_params": {"eps": 1.0}}, "no parameter 'eps'"),
        ({"domain": "dental"}, "industrial, medical"),
        ({"prompts": "absent.yaml"}, r"absent\.yaml"),
    ],
)
def test_wrong_arguments_are_refused_when_the_head_is_made(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        sdp_of(backbone_of(), **arguments)


def test_options_change_but_for_the_blocks_of_the_linear_layers() -> None:
    plus = plus_of(backbone_of())
    plus.options = replace(plus.options, sigma=5.0, layers=(2, 4, 6, 8))  # those of before, named
    for layers in ((1, 4, 6, 8), (4, 8)):
        with pytest.raises(ArgumentError, match=r"belong to layers=\[2, 4, 6, 8\]"):
            plus.options = replace(plus.options, layers=layers)
    assert (plus.options.sigma, plus.sdp.layers) == (5.0, (2, 4, 6, 8))


def test_layers_are_read_in_ascending_order() -> None:
    assert sdp_of(backbone_of(), layers=[8, 2]).layers == (2, 8)


def masks_of() -> Tensor:
    masks = torch.zeros(2, *SIZE)
    masks[0, 8:24, 8:16] = 1
    return masks


def learning_inputs(plus: SdpPlusHead, backbone: ClipBackbone) -> dict[str, Tensor]:
    features = backbone.forward_intermediates(images_of(), plus.request(backbone))
    return plus.learning_inputs(features, backbone, ["tile", "cable"])


def test_learning_inputs_are_per_image_and_without_gradient() -> None:
    backbone = backbone_of()
    inputs = learning_inputs(plus_of(backbone), backbone)

    assert inputs["tokens"].shape == (2, 4, 5, 3, WIDTH)
    assert inputs["text"].shape == (2, EMBED, 2)
    assert not any(value.requires_grad for value in inputs.values())


def test_learning_lowers_the_loss_and_moves_the_linear_layers_alone() -> None:
    torch.manual_seed(0)
    backbone = backbone_of()
    plus = plus_of(backbone)
    inputs, masks, labels = learning_inputs(plus, backbone), masks_of(), torch.tensor([1, 0])
    optimizer = plus.configure_optimizer()
    history = []
    for _ in range(20):
        losses = plus.learning_loss(backbone, inputs, masks, labels)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append(losses["loss"].item())
        assert losses["loss"].item() == pytest.approx((losses["focal"] + losses["dice"]).item())

    assert history[-1] < history[0]
    assert {name.split(".")[0] for name, _ in plus.named_parameters()} == {"fc"}
    assert not plus.is_learned
    plus.finish_learning(backbone)
    assert plus.is_learned


def test_a_batch_of_one_image_keeps_its_dimension() -> None:
    logits = torch.randn(3, 2, *SIZE, generator=torch.Generator().manual_seed(0))
    masks = masks_of()

    together = layer_losses(logits, masks)
    single = [layer_losses(logits[:, [index]], masks[[index]]) for index in range(2)]
    for part in range(2):
        torch.testing.assert_close(together[part], (single[0][part] + single[1][part]) / 2)


def test_learning_without_masks_is_refused() -> None:
    backbone = backbone_of()
    plus = plus_of(backbone)
    with pytest.raises(ArgumentError, match="SDP\\+ learns from masks"):
        plus.learning_loss(backbone, learning_inputs(plus, backbone), None, torch.tensor([1, 0]))


def test_a_learning_rate_must_be_positive() -> None:
    with pytest.raises(ArgumentError, match="learning_rate=0"):
        SdpPlusHead(sdp_of(backbone_of()), backbone_of(), learning_rate=0)


def official(plus: SdpPlusHead) -> dict[str, Tensor]:
    return {f"fc.{key}": value.detach().clone() for key, value in plus.fc.state_dict().items()}


@pytest.mark.parametrize("name", ["ours.safetensors", "official.pth"])
def test_linear_layers_survive_a_file(tmp_path: Path, name: str) -> None:
    backbone = backbone_of()
    source, target = plus_of(backbone), plus_of(backbone)
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save({"linear_layers": official(source)}, path)
    else:
        source.save_linear_layers(path)
    target.load_linear_layers(path)

    assert target.is_learned
    for key, value in source.fc.state_dict().items():
        torch.testing.assert_close(target.fc.state_dict()[key], value, rtol=0, atol=0)


def refused(plus: SdpPlusHead, path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        plus.load_linear_layers(path)
    assert not plus.is_learned
    assert str(path) in str(error.value)
    return str(error.value)


def test_linear_layers_of_another_width_are_refused_with_both_shapes(tmp_path: Path) -> None:
    torch.save({"linear_layers": official(plus_of(backbone_of(width=48)))}, tmp_path / "wide.pth")

    message = refused(plus_of(backbone_of()), tmp_path / "wide.pth")
    assert "[16, 48]" in message
    assert "[16, 32]" in message


def test_another_number_of_linear_layers_is_refused_with_both_numbers(tmp_path: Path) -> None:
    torch.save({"linear_layers": official(plus_of(backbone_of(), layers=[4, 8]))}, tmp_path / "two.pth")

    assert "has 2 linear layers, the model has 4" in refused(plus_of(backbone_of()), tmp_path / "two.pth")


def test_our_files_know_their_layers_and_their_backbone(tmp_path: Path) -> None:
    plus_of(backbone_of()).save_linear_layers(tmp_path / "ours.safetensors")

    other_layers = plus_of(backbone_of(), layers=[1, 3, 5, 7])
    assert "layers=2 4 6 8" in refused(other_layers, tmp_path / "ours.safetensors")
    other_weights = plus_of(backbone_of(seed=1))
    assert "learned on the backbone custom" in refused(other_weights, tmp_path / "ours.safetensors")


class Pickled:
    """Any class: loading it would execute code."""


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    plus = plus_of(backbone_of())
    layers = official(plus)
    path = tmp_path / "layers.pth"

    assert "does not exist" in refused(plus, path)
    torch.save({"linear_layers": layers | {"fc.1.bias": torch.full((EMBED,), torch.nan)}}, path)
    assert "fc.1.bias has values that are not finite" in refused(plus, path)
    torch.save({"linear_layers": {key: value for key, value in layers.items() if key != "fc.2.bias"}}, path)
    assert "lacks 'fc.2.bias'" in refused(plus, path)
    torch.save({"linear_layers": layers | {"gate": torch.zeros(1)}}, path)
    assert "unknown key 'gate'" in refused(plus, path)
    torch.save({"prompt_learner": layers}, path)
    assert "it holds the keys prompt_learner" in refused(plus, path)
    torch.save({"linear_layers": {}}, path)
    assert "no linear layers" in refused(plus, path)
    torch.save({"linear_layers": {0: torch.zeros(1)}}, path)
    assert "state_dict} of tensors" in refused(plus, path)
    torch.save({"linear_layers": Pickled()}, path)
    assert "pickled Python objects" in refused(plus, path)
    path.write_bytes(b"neither zip nor pickle")
    refused(plus, path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    assert "its keys are weight" in refused(plus, tmp_path / "foreign.safetensors")
    save_file(layers, tmp_path / "nameless.safetensors", {"fingerprint": "0"})
    assert "learned on the backbone ? / ?" in refused(plus, tmp_path / "nameless.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "foreign.safetensors").read_bytes()[:20])
    assert "damaged" in refused(plus, tmp_path / "cut.safetensors")
