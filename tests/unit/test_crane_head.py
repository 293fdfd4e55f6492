"""The Crane head: its attention sums, pooling, image tokens, learning, and which files are its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest
from anomalib_zsclip.clip.image_tower import layer_norm, project_heads
from anomalib_zsclip.errors import ArgumentError, CheckpointError
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead
from anomalib_zsclip.heads.base import HeadOutput
from anomalib_zsclip.heads.crane import CraneHead, CraneOptions, fuse_pooled, pool_patches
from anomalib_zsclip.heads.learned_prompts import LearnedPromptsHead
from anomalib_zsclip.heads.two_sentences import class_logits
from anomalib_zsclip.prompts.learned import load_prompts, save_prompts
from tests.learned_prompts import (
    TEXT_LAYERS,
    WIDTH,
    official_file,
    official_state_dict,
    random_images,
    run,
    tiny_backbone,
)


@pytest.fixture(scope="module")
def backbone() -> ClipBackbone:
    return tiny_backbone(embed_dim=WIDTH)


def prompts_file(folder: Path, variant: str, depth: int = TEXT_LAYERS) -> Path:
    return official_file(folder / f"prompts_{variant}_{depth}.pth", official_state_dict(variant, depth=depth))


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return prompts_file(tmp_path, "crane")


def make_head(backbone: ClipBackbone, prompts: Path | None = None, **arguments: object) -> CraneHead:
    head = CraneHead(prompts, **arguments)
    head.setup(backbone, "object")
    return head


# ---------------------------------------------------------------------- the sums of the pass
@torch.no_grad()
def test_self_correlation_adds_three_softmaxes_and_the_bias_once(backbone: ClipBackbone) -> None:
    images = random_images(2, 3, 32, 40)
    features = backbone.forward_intermediates(images, FeatureRequest.of(tokens=[3], self_correlation=[(4, 4)]))
    block = backbone.clip.visual.transformer.resblocks[3]
    query, key, value = project_heads(layer_norm(features.tokens[3], block.ln_1), block.attn)
    weights = sum((part @ part.transpose(-1, -2) / 4).softmax(dim=-1) for part in (query, key, value))  # 4 = sqrt(d)
    expected = block.attn.out_proj((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(features.self_correlation[4, 4], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_sums_of_blocks_are_the_same_alone_and_beside_others(backbone: ClipBackbone) -> None:
    images = random_images(2, 3, 32, 32)
    spans = [(2, 6), (4, 5), (6, 6)]
    both = backbone.forward_intermediates(images, FeatureRequest.of(value_value=spans, self_correlation=spans))
    ones = [(block, block) for block in range(1, 7)]
    single = backbone.forward_intermediates(images, FeatureRequest.of(self_correlation=ones)).self_correlation
    values = backbone.forward_intermediates(images, FeatureRequest.of(value_value=spans)).value_value
    for first, last in spans:
        expected = sum(single[block, block] for block in range(first, last + 1))
        torch.testing.assert_close(both.self_correlation[first, last], expected, rtol=0, atol=1e-5)
        assert torch.equal(both.value_value[first, last], values[first, last])
    plain = backbone.forward_intermediates(images)
    torch.testing.assert_close(both.image_embedding, plain.image_embedding, rtol=0, atol=1e-5)


def test_requests_of_heads_are_merged_and_checked() -> None:
    crane, other = (FeatureRequest.of(self_correlation=[pair]) for pair in ((2, 6), (3, 4)))
    assert (crane | other).self_correlation == {(2, 6), (3, 4)}
    with pytest.raises(ArgumentError, match=r"self_correlation=\[7\] is outside"):
        FeatureRequest.of(self_correlation=[(2, 7)]).check(6)
    with pytest.raises(ArgumentError, match=r"self_correlation=\[\(4, 2\)\]: the first block"):
        FeatureRequest.of(self_correlation=[(4, 2)]).check(6)


def test_the_published_share_of_blocks_is_dual_unless_told_otherwise(backbone: ClipBackbone) -> None:
    # round(19 / 24 * 6) = 5 dual blocks.
    assert CraneHead().request(backbone) == FeatureRequest.of(tokens=[1], self_correlation=[(2, 6)])
    assert CraneHead(self_correlation_blocks=9).request(backbone) == FeatureRequest.of(
        tokens=[0], self_correlation=[(1, 6)]
    )
    assert CraneHead(self_correlation_blocks=0).request(backbone) == FeatureRequest.of(tokens=[6])


@torch.no_grad()
def test_without_dual_blocks_ordinary_tokens_are_compared(backbone: ClipBackbone, official: Path) -> None:
    head = make_head(backbone, official, self_correlation_blocks=0)
    features = backbone.forward_intermediates(random_images(1, 3, 32, 32), head.request(backbone))
    assert torch.equal(head.refined_tokens(features, backbone), features.tokens[6])


# ---------------------------------------------------------------------- judging
@pytest.mark.parametrize("size", [(32, 32), (8, 64), (37, 50)])
@pytest.mark.parametrize("image_tokens", [False, True])
def test_an_image_scores_the_same_alone_and_in_a_batch(
    backbone: ClipBackbone, official: Path, size: tuple[int, int], image_tokens: bool
) -> None:
    head = make_head(backbone, official, image_tokens=image_tokens)
    images = random_images(3, 3, *size)
    score, anomaly_map = run(head, backbone, images)
    assert score.shape == (3,)
    assert anomaly_map.shape == (3, *size)
    assert all(((values >= 0) & (values <= 1)).all() for values in (score, anomaly_map))
    for index in range(3):
        alone = run(head, backbone, images[index : index + 1])
        torch.testing.assert_close(alone.score[0], score[index], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.anomaly_map[0], anomaly_map[index], rtol=0, atol=1e-5)


def test_image_score_options(backbone: ClipBackbone, official: Path) -> None:
    images = random_images(3, 3, 32, 32)
    text, peak, mean = (
        run(make_head(backbone, official, image_score=kind), backbone, images) for kind in ("text", "map_max", "mean")
    )
    torch.testing.assert_close(peak.score, peak.anomaly_map.amax(dim=(1, 2)))
    torch.testing.assert_close(mean.score, (text.score + peak.score) / 2)


@torch.no_grad()
def test_the_share_goes_from_the_image_embedding_to_the_pooled_patches(backbone: ClipBackbone, official: Path) -> None:
    images = random_images(3, 3, 32, 32)
    head = make_head(backbone, official)
    features = backbone.forward_intermediates(images, head.request(backbone))
    patches = F.normalize(head.patch_features(features, backbone), dim=-1)
    pooled = pool_patches(patches, class_logits(patches, head.text_features, 0.07))
    for share, embedding in ((0.0, features.image_embedding), (1.0, pooled)):
        expected = class_logits(embedding, head.text_features, 0.07).softmax(dim=-1)[:, 1]
        found = run(make_head(backbone, official, pooled_share=share), backbone, images).score
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_suspicious_patches_are_pooled() -> None:
    patches, logits = torch.eye(2)[None], torch.tensor([[[0.0, 4.0], [0.0, 0.0]]])
    expected = F.normalize(torch.tensor([[torch.tensor(4.0).sigmoid(), 0.5]]), dim=-1)
    torch.testing.assert_close(pool_patches(patches, logits), expected)


def test_pooled_patches_have_unit_length_before_they_are_mixed() -> None:
    patches = F.normalize(random_images(2, 9, 8), dim=-1)
    pooled = pool_patches(patches, torch.zeros(2, 9, 2))
    torch.testing.assert_close(pooled, F.normalize(patches.sum(dim=1), dim=-1))
    image = F.normalize(random_images(2, 8), dim=-1)
    torch.testing.assert_close(fuse_pooled(image, pooled, 0.5), F.normalize(image + pooled, dim=-1))


@pytest.mark.parametrize("upsampled", ["probabilities", "logits"])
def test_what_is_upsampled_is_between_the_patches(backbone: ClipBackbone, upsampled: str) -> None:
    head = CraneHead(upsampled=upsampled, sigma=0)
    logits = torch.tensor([[[0.0, -4.0], [0.0, 2.0]]])
    row = head.map_of(logits, (1, 2), (1, 4))[0, 0]
    quarter = torch.tensor([-4.0, -2.5, 0.5, 2.0]).sigmoid()  # logits at 0, 1/4, 3/4 and 1 of the way
    low, high = torch.tensor([-4.0, 2.0]).sigmoid()
    mixed = torch.stack([low, 0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high, high])
    torch.testing.assert_close(row, quarter if upsampled == "logits" else mixed)


@pytest.mark.parametrize("upsampled", ["probabilities", "logits"])
def test_maps_are_smoothed_whatever_is_upsampled(upsampled: str) -> None:
    logits = random_images(1, 16, 2)
    rough, smooth = (CraneHead(upsampled=upsampled, sigma=sigma).map_of(logits, (4, 4), (32, 32)) for sigma in (0, 3.0))
    assert smooth.std() < 0.8 * rough.std()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"self_correlation_blocks": -1}, "self_correlation_blocks=-1"),
        ({"pooled_share": 1.5}, r"pooled_share=1\.5"),
        ({"upsampled": "maps"}, "'maps'.*probabilities, logits"),
        ({"map_loss_weight": -1.0}, r"map_loss_weight=-1\.0"),
        ({"temperature": 0.0}, r"temperature=0\.0"),
        ({"layers": [6]}, "layers.*CraneOptions has the fields.*self_correlation_blocks"),
    ],
)
def test_impossible_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        CraneHead(**arguments)


def test_weights_of_losses_move_no_score() -> None:
    assert CraneOptions(map_loss_weight=1.0).recipe() == CraneOptions().recipe()
    assert CraneOptions(image_tokens=True).recipe() != CraneOptions().recipe()


def test_an_unlearned_head_refuses_to_score(backbone: ClipBackbone) -> None:
    with pytest.raises(ArgumentError, match="Crane has no learned prompts yet"):
        run(make_head(backbone, learn=True), backbone, random_images(1, 3, 32, 32))


# ---------------------------------------------------------------------- images in sentences
@torch.no_grad()
def test_the_image_stands_behind_the_learned_tokens(backbone: ClipBackbone, official: Path) -> None:
    head = make_head(backbone, official)
    images = F.normalize(random_images(2, WIDTH), dim=-1)
    found = head.prompts.encode_for_images(backbone, images)
    for kind, (context, ending) in enumerate(
        ((head.prompts.ctx_pos, "object."), (head.prompts.ctx_neg, "damaged object."))
    ):
        ids = backbone.tokenize([ending])
        tokens = backbone.embed_tokens(ids)[0]
        for row, image in enumerate(images):
            sentence = torch.cat([tokens[:1], context, image[None], tokens[1:]])[None, :77]
            end = ids.argmax(dim=-1) + len(context) + 1
            expected = backbone.encode_prompts(sentence, end, list(head.prompts.deep_prompts))
            torch.testing.assert_close(found[row, kind], expected[0], rtol=0, atol=1e-5)


def test_images_of_another_width_are_no_tokens(official: Path) -> None:
    wide = tiny_backbone(embed_dim=24)
    for arguments in ({"learn": True}, {"prompts": official, "image_tokens": True}):
        with pytest.raises(ArgumentError, match=r"'tiny' have 24 dimensions.*have 16.*image_tokens=False"):
            make_head(wide, **arguments)
    assert make_head(wide, official).is_learned


def test_a_place_is_kept_for_the_image(backbone: ClipBackbone) -> None:
    with pytest.raises(ArgumentError, match=r"n_ctx=72 is too long.*at most 71"):
        make_head(backbone, learn=True, n_ctx=72)
    head = make_head(backbone, learn=True, n_ctx=71)
    assert head.encode_text_for(backbone, F.normalize(random_images(2, WIDTH), dim=-1)).isfinite().all()


@pytest.mark.parametrize("image_tokens", [False, True])
def test_an_exported_head_agrees(backbone: ClipBackbone, official: Path, image_tokens: bool) -> None:
    head = make_head(backbone, official, image_tokens=image_tokens)

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = backbone, head

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            features = self.backbone.forward_intermediates(images, self.head.request(self.backbone))
            return tuple(self.head(features, self.backbone, (40, 24)))

    images = random_images(3, 3, 40, 24)
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(Detector(), (images[:2],), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        torch.testing.assert_close(HeadOutput(*program.module()(images)), run(head, backbone, images))


# ---------------------------------------------------------------------- learning
def learning_batch(head: CraneHead, backbone: ClipBackbone) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Non-square images whose left halves are anomalous where the label is 1."""
    images, labels, masks = random_images(4, 3, 32, 48), torch.tensor([0, 1, 0, 1]), torch.zeros(4, 32, 48)
    masks[1::2, :, :24] = 1
    images[1::2, :, :, :24] += 2
    with torch.no_grad():
        features = backbone.forward_intermediates(images, head.request(backbone))
    return head.learning_inputs(features, backbone, ["object"] * 4), masks, labels


@pytest.mark.parametrize("with_masks", [True, False])
def test_learning_lowers_the_loss_and_changes_the_prompts_alone(backbone: ClipBackbone, with_masks: bool) -> None:
    head = make_head(backbone, learn=True)
    inputs, masks, labels = learning_batch(head, backbone)
    shapes = {name: tuple(value.shape) for name, value in inputs.items()}
    assert shapes == {"image_embedding": (4, WIDTH), "patch_features": (4, 4, 6, WIDTH)}
    optimizer = head.configure_optimizer()
    losses = []
    for _ in range(8):
        terms = head.learning_loss(backbone, inputs, masks if with_masks else None, labels)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert ("focal" in terms) == with_masks
    assert not any(value.requires_grad for name, value in terms.items() if name != "loss")


def test_loss_is_the_weighted_sum_of_its_parts(backbone: ClipBackbone) -> None:
    head = make_head(backbone, learn=True, map_loss_weight=3.0)
    inputs, masks, labels = learning_batch(head, backbone)
    terms = head.learning_loss(backbone, inputs, masks.bool(), labels)
    expected = 3 * (terms["focal"] + terms["dice_anomalous"]) + 0.2 * terms["image"]
    torch.testing.assert_close(terms["loss"].detach(), expected)
    terms = head.learning_loss(backbone, inputs, None, labels)
    torch.testing.assert_close(terms["loss"].detach(), 0.2 * terms["image"])


def test_a_batch_of_one_image_is_a_batch(backbone: ClipBackbone) -> None:
    head = make_head(backbone, learn=True)
    inputs, masks, labels = learning_batch(head, backbone)
    single = [
        head.learning_loss(backbone, {k: v[i : i + 1] for k, v in inputs.items()}, masks[i : i + 1], labels[i : i + 1])
        for i in range(4)
    ]
    whole = head.learning_loss(backbone, inputs, masks, labels)
    for name in ("dice_anomalous", "focal", "image"):
        torch.testing.assert_close(torch.stack([terms[name] for terms in single]).mean(), whole[name])


# ---------------------------------------------------------------------- files
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("own", "other", "named"), [(CraneHead, "anomaly_clip", "Crane"), (AnomalyClipHead, "crane", "AnomalyCLIP")]
)
def test_a_file_of_the_other_method_is_refused_with_the_right_variant(
    backbone: ClipBackbone, tmp_path: Path, suffix: str, own: type[LearnedPromptsHead], other: str, named: str
) -> None:
    path = prompts_file(tmp_path, other)
    if suffix == ".safetensors":
        prompts, path = load_prompts(path), tmp_path / "ours.safetensors"
        save_prompts(prompts, path)
    head = own(path)
    with pytest.raises(CheckpointError, match=rf"Pass variant='{other}'.*{other}_checkpoint=.*prompts of {named}\."):
        head.setup(backbone, "object")


@pytest.mark.parametrize("own", [CraneHead, AnomalyClipHead])
def test_a_file_without_deep_prompts_serves_both(
    backbone: ClipBackbone, tmp_path: Path, own: type[LearnedPromptsHead]
) -> None:
    head = own(prompts_file(tmp_path, "crane", depth=1), depth=1)
    head.setup(backbone, "object")
    assert head.is_learned


def test_saved_prompts_name_their_method_whatever_they_came_from(
    backbone: ClipBackbone, official: Path, tmp_path: Path
) -> None:
    learned, read = make_head(backbone, learn=True), make_head(backbone, official)
    restored = CraneHead()
    restored.load_state_dict(read.state_dict())
    for number, head in enumerate((learned, read, restored)):
        path = tmp_path / f"{number}.safetensors"
        save_prompts(head.prompts, path)
        assert load_prompts(path).variant == "crane"
        assert make_head(backbone, path).is_learned
    images = random_images(2, 3, 32, 32)
    torch.testing.assert_close(run(restored, backbone, images), run(read, backbone, images), rtol=0, atol=0)


def test_without_prompts_the_ways_out_are_named(backbone: ClipBackbone) -> None:
    with pytest.raises(
        ArgumentError, match=r"^Crane has no learned prompts.*checkpoint=.*crane_checkpoint=.*learn=True"
    ):
        make_head(backbone)
