"""The AnomalyCLIP head: any batch and size, its arguments, learning, and the files of learned prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest
from anomalib_zsclip.errors import ArgumentError, CheckpointError
from anomalib_zsclip.heads import anomaly_clip
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipHead, class_probabilities, summed_map
from anomalib_zsclip.heads.crane import CraneHead
from anomalib_zsclip.heads.learned_prompts import LearnedPromptsHead
from anomalib_zsclip.prompts.learned import (
    OFFICIAL,
    PromptLearner,
    load_prompts,
    save_prompts,
)
from tests.learned_prompts import (
    WIDTH,
    official_file,
    official_state_dict,
    random_images,
    run,
    tiny_backbone,
)


@pytest.fixture(scope="module")
def backbone() -> ClipBackbone:
    return tiny_backbone()


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return official_file(tmp_path / "epoch_15.pth", official_state_dict())


def make_head(backbone: ClipBackbone, prompts: Path, **arguments: object) -> AnomalyClipHead:
    head = AnomalyClipHead(prompts, **arguments)
    head.setup(backbone, "object")
    return head


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (8, 64), (37, 50)])
@pytest.mark.parametrize("batch", [1, 3])
def test_scores_are_probabilities_at_any_batch_and_size(
    backbone: ClipBackbone, official: Path, batch: int, size: tuple[int, int]
) -> None:
    score, anomaly_map = run(make_head(backbone, official), backbone, random_images(batch, 3, *size))
    assert score.shape == (batch,)
    assert anomaly_map.shape == (batch, *size)
    for values in (score, anomaly_map):
        assert values.isfinite().all()
        assert (values >= 0).all()
        assert (values <= 1).all()


@pytest.mark.parametrize("image_score", ["text", "map_max", "mean"])
def test_an_image_scores_the_same_alone_and_in_a_batch(
    backbone: ClipBackbone, official: Path, image_score: str
) -> None:
    head = make_head(backbone, official, layers=[2, 4, 6], image_score=image_score)
    images = random_images(4, 3, 40, 24)
    batch = run(head, backbone, images)
    for index in range(len(images)):
        alone = run(head, backbone, images[index : index + 1])
        torch.testing.assert_close(alone.score[0], batch.score[index], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.anomaly_map[0], batch.anomaly_map[index], rtol=0, atol=1e-5)


def test_sizes_before_do_not_matter(backbone: ClipBackbone, official: Path) -> None:
    head = make_head(backbone, official)
    images = random_images(2, 3, 32, 32)
    first = run(head, backbone, images)
    run(head, backbone, random_images(1, 3, 64, 48))
    torch.testing.assert_close(run(head, backbone, images), first, rtol=0, atol=0)


def test_image_score_options(backbone: ClipBackbone, official: Path) -> None:
    images = random_images(3, 3, 32, 32)
    text, peak, mean = (
        run(make_head(backbone, official, image_score=kind), backbone, images) for kind in ("text", "map_max", "mean")
    )
    torch.testing.assert_close(peak.score, peak.anomaly_map.amax(dim=(1, 2)))
    torch.testing.assert_close(mean.score, (text.score + peak.score) / 2)


def test_map_of_several_layers_is_the_mean_of_their_maps_in_any_order(backbone: ClipBackbone, official: Path) -> None:
    images = random_images(2, 3, 32, 32)
    single = [run(make_head(backbone, official, layers=[layer]), backbone, images).anomaly_map for layer in (1, 4, 6)]
    several = run(make_head(backbone, official, layers=[6, 1, 4]), backbone, images).anomaly_map
    torch.testing.assert_close(several, sum(single) / 3)


def test_defaults_take_the_last_block_and_the_published_share_of_dual_blocks(backbone: ClipBackbone) -> None:
    # round(19 / 24 * 6) = 5 dual blocks.
    assert AnomalyClipHead().request(backbone) == FeatureRequest.of(tokens=[1], value_value=[(2, 6)])


def test_blocks_before_the_dual_ones_give_ordinary_tokens(backbone: ClipBackbone) -> None:
    head = AnomalyClipHead(layers=[2, 5], value_value_blocks=3)
    assert head.request(backbone) == FeatureRequest.of(tokens=[2, 3], value_value=[(4, 5)])
    assert AnomalyClipHead(value_value_blocks=0).request(backbone) == FeatureRequest.of(tokens=[6])


@pytest.mark.parametrize("blocks", [6, 19])
def test_where_all_blocks_are_dual_the_refined_stream_starts_from_the_input(
    backbone: ClipBackbone, blocks: int
) -> None:
    head = AnomalyClipHead(value_value_blocks=blocks)
    assert head.request(backbone) == FeatureRequest.of(tokens=[0], value_value=[(1, 6)])


def test_an_undecided_patch_gives_one_half() -> None:
    text = torch.nn.functional.normalize(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), dim=-1)
    probabilities = class_probabilities(torch.tensor([[[[3.0, 0.0], [5.0, 0.0]]]]), text, temperature=0.07)
    torch.testing.assert_close(probabilities, torch.full((1, 1, 2, 2), 0.5))
    torch.testing.assert_close(summed_map(probabilities, (1, 2), (6, 8), sigma=1.0), torch.full((1, 6, 8), 0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_ctx": 0}, "n_ctx=0"),
        ({"depth": 0}, "depth=0"),
        ({"t_n_ctx": -1}, "t_n_ctx=-1"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"layers": []}, "layers"),
        ({"layers": 4}, "layers=4 must be a list"),
        ({"layers": ["6"]}, r"layers\[0\]='6'"),
        ({"value_value_blocks": -1}, "value_value_blocks=-1"),
        ({"image_score": "max"}, "'max'.*map_max"),
    ],
)
def test_impossible_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        AnomalyClipHead(**arguments)


@pytest.mark.parametrize("layers", [[7], [0, 6], [-1]])
def test_layers_outside_the_tower_are_named(backbone: ClipBackbone, layers: list[int]) -> None:
    with pytest.raises(ArgumentError, match=r"layers.*(has blocks 1 to 6|at least 1)"):
        AnomalyClipHead(learn=True, layers=layers).setup(backbone, "object")


def test_prompts_longer_than_the_context_are_refused(backbone: ClipBackbone) -> None:
    with pytest.raises(ArgumentError, match=r"n_ctx=73 is too long.*at most 72"):
        AnomalyClipHead(learn=True, n_ctx=73).setup(backbone, "object")


def test_without_prompts_the_three_ways_out_are_named(backbone: ClipBackbone) -> None:
    with pytest.raises(ArgumentError, match=r"checkpoint=.*learn=True.*backbone='builtin'"):
        AnomalyClipHead().setup(backbone, "object")


def test_shipped_prompts_serve_the_built_in_backbone_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, official: Path
) -> None:
    shipped = tmp_path / "shipped.safetensors"
    save_prompts(load_prompts(official), shipped)
    monkeypatch.setattr(anomaly_clip, "BUILTIN_PROMPTS", shipped)
    backbone = tiny_backbone()
    backbone.name = "builtin"
    head = AnomalyClipHead()
    head.setup(backbone, "object")
    assert head.is_learned
    torch.testing.assert_close(head.prompts.ctx_pos, load_prompts(official).ctx_pos)


def test_an_unlearned_head_refuses_to_score(backbone: ClipBackbone) -> None:
    head = AnomalyClipHead(learn=True)
    head.setup(backbone, "object")
    assert not head.is_learned
    with pytest.raises(ArgumentError, match="no learned prompts yet"):
        run(head, backbone, random_images(1, 3, 32, 32))


def test_deep_prompts_are_capped_at_the_text_tower(backbone: ClipBackbone) -> None:
    head = AnomalyClipHead(learn=True, depth=9)
    head.setup(backbone, "object")
    assert head.prompts.dimensions == {"n_ctx": 12, "depth": 3, "t_n_ctx": 4, "text_width": WIDTH}


@pytest.mark.parametrize(("n_ctx", "t_n_ctx"), [(1, 1), (3, 3), (2, 30), (72, 4)])
def test_prompts_of_any_length_are_encoded(backbone: ClipBackbone, n_ctx: int, t_n_ctx: int) -> None:
    head = AnomalyClipHead(learn=True, n_ctx=n_ctx, t_n_ctx=t_n_ctx)
    head.setup(backbone, "object")
    embeddings = head.encode_text(backbone)
    assert embeddings.shape == (2, 24)
    assert embeddings.isfinite().all()
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3


def learning_batch(head: AnomalyClipHead, backbone: ClipBackbone) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Non-square images whose left halves are anomalous where the label is 1."""
    images = random_images(4, 3, 32, 48)
    labels = torch.tensor([0, 1, 0, 1])
    masks = torch.zeros(4, 32, 48)
    masks[1::2, :, :24] = 1
    images[1::2, :, :, :24] += 2
    with torch.no_grad():
        features = backbone.forward_intermediates(images, head.request(backbone))
    return head.learning_inputs(features, backbone, ["object"] * 4), masks, labels


@pytest.mark.parametrize("with_masks", [True, False])
def test_learning_lowers_the_loss_and_changes_the_prompts_alone(backbone: ClipBackbone, with_masks: bool) -> None:
    head = AnomalyClipHead(learn=True, layers=[3, 6])
    head.setup(backbone, "object")
    inputs, masks, labels = learning_batch(head, backbone)
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "image_embedding": (4, 24),
        "patch_features": (4, 2, 4, 6, 24),
    }
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


def test_loss_is_the_weighted_sum_of_its_parts(backbone: ClipBackbone, official: Path) -> None:
    head = make_head(backbone, official, learn=True)
    inputs, masks, labels = learning_batch(head, backbone)
    terms = head.learning_loss(backbone, inputs, masks.bool(), labels)
    expected = 4 * (terms["focal"] + terms["dice_anomalous"] + terms["dice_normal"]) + terms["image"]
    torch.testing.assert_close(terms["loss"].detach(), expected)


@pytest.mark.parametrize("make", [AnomalyClipHead, CraneHead])
def test_random_prompts_are_not_learned_however_often_the_head_is_set_up(make: type[LearnedPromptsHead]) -> None:
    backbone = tiny_backbone(embed_dim=16)  # as wide as the text tower, so that an image can be a token
    head = make(learn=True)
    for _ in range(2):
        head.setup(backbone, "object")
        assert not head.is_learned
    head.finish_learning(backbone)
    learned = head.text_features
    with torch.no_grad():
        head.prompts.ctx_neg.add_(1)
    head.setup(backbone, "object")
    assert not torch.equal(head.text_features, learned), "what was learned is compiled anew"


def test_finished_learning_survives_inference_mode_and_a_new_checkpoint(backbone: ClipBackbone, official: Path) -> None:
    head = AnomalyClipHead(learn=True)
    head.setup(backbone, "object")
    with torch.inference_mode():
        head.finish_learning(backbone)
    assert head.is_learned
    other = make_head(backbone, official)
    head.load_state_dict(other.state_dict())
    torch.testing.assert_close(head.text_features, other.text_features)


def test_learning_goes_on_after_validation_in_inference_mode(backbone: ClipBackbone) -> None:
    head = AnomalyClipHead(learn=True, sigma=0)
    head.setup(backbone, "object")
    with torch.inference_mode():
        head.finish_learning(backbone)
        run(head, backbone, random_images(4, 3, 32, 48))
    inputs, masks, labels = learning_batch(head, backbone)
    head.configure_optimizer()
    head.learning_loss(backbone, inputs, masks, labels)["loss"].backward()
    assert head.prompts.ctx_pos.grad.abs().max() > 0


def test_an_exported_head_agrees_and_leaves_the_head_as_it_was(backbone: ClipBackbone, official: Path) -> None:
    head = make_head(backbone, official, layers=[3, 6])
    images = random_images(3, 3, 32, 32)
    expected = run(head, backbone, images)

    class Detector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = backbone, head

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            features = self.backbone.forward_intermediates(images, self.head.request(self.backbone))
            return tuple(self.head(features, self.backbone, (48, 20)))

    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(Detector(), (images[:2],), dynamic_shapes=({0: batch},))
    score, anomaly_map = program.module()(images)
    torch.testing.assert_close(score, expected.score)
    assert anomaly_map.shape == (3, 48, 20)
    torch.testing.assert_close(run(head, backbone, images), expected)


def test_later_set_ups_keep_what_was_learned(backbone: ClipBackbone) -> None:
    head = AnomalyClipHead(learn=True)
    head.setup(backbone, "object")
    before = head.prompts
    head.setup(backbone, "object")
    head.finish_learning(backbone)
    head.setup(backbone, "object")
    assert head.prompts is before


def test_learning_goes_on_from_given_prompts(backbone: ClipBackbone, official: Path) -> None:
    head = make_head(backbone, official, learn=True)
    assert head.is_learned
    torch.testing.assert_close(head.prompts.ctx_pos, load_prompts(official).ctx_pos)
    assert head.prompts.info == {"backbone": "tiny", "fingerprint": backbone.fingerprint}


def test_published_prompts_are_rounded_unless_told_otherwise(backbone: ClipBackbone, official: Path) -> None:
    default, rounded, exact = (
        make_head(backbone, official, round_prompts=kind).text_features for kind in (None, True, False)
    )
    assert torch.equal(default, rounded)
    assert not torch.equal(default, exact)
    torch.testing.assert_close(default, exact, rtol=0, atol=1e-2)


def test_a_state_dict_restores_a_head_without_set_up(backbone: ClipBackbone, official: Path) -> None:
    head = make_head(backbone, official)
    restored = AnomalyClipHead()
    restored.load_state_dict(head.state_dict())
    assert restored.is_learned
    images = random_images(2, 3, 32, 32)
    torch.testing.assert_close(run(restored, backbone, images), run(head, backbone, images), rtol=0, atol=0)
    torch.testing.assert_close(restored.prompts.state_dict(), head.prompts.state_dict(), rtol=0, atol=0)


def test_a_state_dict_of_other_prompts_is_refused(backbone: ClipBackbone, official: Path) -> None:
    state_dict = make_head(backbone, official).state_dict()
    with pytest.raises(CheckpointError, match="n_ctx=12 instead of 8"):
        AnomalyClipHead(n_ctx=8).load_state_dict(state_dict)
    restored = AnomalyClipHead()
    restored.load_state_dict(state_dict)
    with pytest.raises(CheckpointError, match=r"depth=3 instead of 5, text_width=16 instead of 32"):
        restored.setup(tiny_backbone(text_layers=5, text_width=32), "object")


def test_files_give_back_what_was_saved(tmp_path: Path) -> None:
    prompts = PromptLearner(WIDTH, n_ctx=5, depth=3, t_n_ctx=2)
    prompts.info = {"backbone": "tiny", "learned_from": "my screws"}
    save_prompts(prompts, tmp_path / "deep" / "prompts.safetensors")
    loaded = load_prompts(tmp_path / "deep" / "prompts.safetensors")
    assert loaded.info == prompts.info
    assert loaded.dimensions == {"n_ctx": 5, "depth": 3, "t_n_ctx": 2, "text_width": WIDTH}
    torch.testing.assert_close(loaded.state_dict(), prompts.state_dict(), rtol=0, atol=0)


def test_prompts_without_deep_ones_survive_both_formats(tmp_path: Path) -> None:
    official_file(tmp_path / "shallow.pth", official_state_dict(depth=1))
    save_prompts(load_prompts(tmp_path / "shallow.pth"), tmp_path / "shallow.safetensors")
    head = make_head(tiny_backbone(), tmp_path / "shallow.safetensors", depth=1)
    assert head.prompts.dimensions["depth"] == 1


def test_saved_official_prompts_give_the_same_text_features(
    backbone: ClipBackbone, official: Path, tmp_path: Path
) -> None:
    ours = tmp_path / "ours.safetensors"
    save_prompts(load_prompts(official), ours)
    assert load_prompts(ours).info == {"layout": OFFICIAL}
    assert torch.equal(make_head(backbone, ours).text_features, make_head(backbone, official).text_features)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_ctx": 8}, r"n_ctx=8 instead of 12"),
        ({"depth": 9}, r"depth=9 instead of 3.*'tiny' has 3 blocks of width 16"),
        ({"depth": 2}, r"depth=2 instead of 3"),
        ({"t_n_ctx": 5}, r"t_n_ctx=5 instead of 4"),
        ({"width": 20}, r"text_width=20 instead of 16"),
    ],
)
def test_prompts_of_another_size_are_refused_with_both_sizes(
    backbone: ClipBackbone, tmp_path: Path, sizes: dict[str, int], message: str
) -> None:
    path = official_file(tmp_path / "other.pth", official_state_dict(**sizes))
    with pytest.raises(CheckpointError, match=message):
        make_head(backbone, path)


def test_prompts_of_another_backbone_are_refused(backbone: ClipBackbone, tmp_path: Path) -> None:
    head = AnomalyClipHead(learn=True)
    head.setup(backbone, "object")
    save_prompts(head.prompts, tmp_path / "prompts.safetensors")
    with pytest.raises(CheckpointError, match="learned with the backbone 'tiny'"):
        make_head(tiny_backbone(seed=1), tmp_path / "prompts.safetensors")


def damage(state_dict: dict, name: str, value: Tensor | None) -> dict:
    """State dict with one entry replaced, or removed."""
    return {key: tensor for key, tensor in state_dict.items() if key != name} | ({} if value is None else {name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ctx_neg", None, "lacks ctx_neg"),
        ("compound_prompts_text.0", None, r"lacks compound_prompts_text\.0"),
        ("ctx_pos", torch.full((1, 1, 12, WIDTH), float("nan")), "ctx_pos has values that are not finite"),
        (
            "compound_prompts_text.1",
            torch.full((4, WIDTH), float("inf")),
            "deep_prompts has values that are not finite",
        ),
        ("ctx_pos", torch.zeros(12, WIDTH), "ctx_pos has the shape"),
        ("ctx_pos", torch.zeros(1, 1, 11, WIDTH), "do not belong together"),
        ("compound_prompts_text.1", torch.zeros(3, WIDTH), "differ in shape"),
    ],
)
def test_damaged_prompts_are_named(tmp_path: Path, name: str, value: Tensor | None, message: str) -> None:
    path = official_file(tmp_path / "damaged.pth", damage(official_state_dict(), name, value))
    with pytest.raises(CheckpointError, match=message):
        load_prompts(path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"prompt_learner": 3}, [1, 2], {}])
def test_other_contents_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not of the published layout"):
        load_prompts(tmp_path / "other.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_truncated_files_are_refused(tmp_path: Path, official: Path, suffix: str, share: float) -> None:
    whole = official
    if suffix == ".safetensors":
        whole = tmp_path / "whole.safetensors"
        save_prompts(load_prompts(official), whole)
    content = whole.read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="damaged"):
        load_prompts(path)


def test_another_safetensors_is_refused(tmp_path: Path, official: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="ctx_pos, ctx_neg, deep_prompts missing among 'weight'"):
        load_prompts(path)
    save_prompts(load_prompts(official), path)
    assert set(load_file(path)) == {"ctx_pos", "ctx_neg", "deep_prompts"}


class Malice:
    """Creates a file when it is unpickled by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_pickled_code_never_runs(tmp_path: Path, legacy: bool, nested: bool) -> None:
    mark = tmp_path / "mark"
    content = {"prompt_learner": official_state_dict() | {"ctx_pos": Malice(mark)}} if nested else Malice(mark)
    path = tmp_path / "malicious.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="pickled Python objects"):
        load_prompts(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # The file would have been harmful.
