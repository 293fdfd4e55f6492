"""Images that were compared with each other are not judged a second time in the same stage."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from anomalib_zsclip.clip import ClipBackbone, FeatureRequest, ImageFeatures
from anomalib_zsclip.heads.base import HeadOutput
from anomalib_zsclip.heads.explanation import DefectNamer
from anomalib_zsclip.heads.maps import tokens_to_grid, upsample
from anomalib_zsclip.heads.memory_bank import MemoryBank
from anomalib_zsclip.heads.mutual_scoring import MutualScoring
from anomalib_zsclip.images import ClipPreProcessor, Tiling
from anomalib_zsclip.models.folder_references import fill
from anomalib_zsclip.models.readiness import valid_verdicts
from anomalib_zsclip.models.verdicts import Verdict, Verdicts, judge, key_of
from anomalib_zsclip.models.views import Views
from anomalib_zsclip.models.zero_shot_model import ZeroShotModel

SIDE, REFERENCES, ALL = 32, 5, 7


class Brightness(nn.Module):
    """A head without text."""

    def request(self, backbone: ClipBackbone) -> FeatureRequest:
        return FeatureRequest.of(tokens=[backbone.layers])

    def forward(self, features: ImageFeatures, backbone: ClipBackbone, size: tuple[int, int]) -> HeadOutput:
        tokens = features.tokens[backbone.layers][:, 1:].mean(dim=-1, keepdim=True).sigmoid()
        maps = upsample(tokens_to_grid(tokens.transpose(1, 2), features.grid)[:, 0], size)
        return HeadOutput(features.image_embedding.mean(dim=1).sigmoid(), maps)


class Folder:
    """Pictures as :class:`NormalImages` has them."""

    files = tuple(Path(f"{index}.png") for index in range(ALL))
    origin = "a test"

    def __init__(self, pictures: Tensor) -> None:
        self.pictures = pictures

    def batches(self, indices: list[int], transform: nn.Module, device: torch.device) -> Iterator[Tensor]:
        for index in indices:
            yield transform(self.pictures[index])[None].to(device)


class Counted(ZeroShotModel):
    """Counts the views that pass through the tower."""

    passes = 0

    def features(self, images: Tensor) -> ImageFeatures:
        self.passes += len(images)
        return super().features(images)


def make(
    tiny: ClipBackbone, tiles: int, *, named: bool = True, budget: int = 2**28
) -> tuple[Counted, Verdicts, Tensor]:
    """A detector with references, what these got, and pictures, the references first."""
    tiling = Tiling(tiles)
    pre_processor = ClipPreProcessor.for_size((SIDE, SIDE), tiny.mean, tiny.std, tiling)
    namer = DefectNamer(tiny.embed_dim, ["crack", "hole", "stain"]) if named else None
    views = Views(tiling, view_chunk=4, tile=(SIDE, SIDE))
    model = Counted(
        tiny,
        {"head": Brightness()},  # type: ignore[dict-item]
        memory_bank=MemoryBank(),
        mutual=MutualScoring(0.5),
        namer=namer,
        views=views,
    )
    if namer is not None:
        namer.setup(tiny)
        namer.keeps_evidence = True
    pictures = torch.rand(ALL, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    verdicts = Verdicts(budget)
    with torch.no_grad():
        fill(model, Folder(pictures), list(range(REFERENCES)), pre_processor.transform, verdicts, quiet=True)  # type: ignore[arg-type]
    return model, verdicts, pre_processor(pictures)


@torch.no_grad()
@pytest.mark.parametrize("tiles", [1, 2])
def test_verdicts_are_those_of_a_second_pass(tiny: ClipBackbone, tiles: int) -> None:
    model, verdicts, images = make(tiny, tiles)
    assert len(verdicts.known) == REFERENCES
    namer = model.namer
    assert namer is not None
    wanted, wanted_texts = judge(model, images, explain=True)
    seen, namer.evidence = namer.evidence, None
    assert seen is not None
    regions = torch.rand(1, *wanted.anomaly_map.shape[1:]).round()  # type: ignore[union-attr]
    for chosen in ([3, 0], [6, 2, 5], [5, 6]):
        model.passes = 0
        found, texts = judge(model, images[chosen], verdicts, explain=True)
        assert model.passes == sum(index >= REFERENCES for index in chosen) * (1 if tiles == 1 else 5)
        torch.testing.assert_close(found.pred_score, wanted.pred_score[chosen])  # type: ignore[index]
        torch.testing.assert_close(found.anomaly_map, wanted.anomaly_map[chosen])  # type: ignore[index]
        assert texts == [wanted_texts[index] for index in chosen]
        # Regions are named by the same.
        evidence, namer.evidence = namer.evidence, None
        assert evidence is not None
        for place, index in enumerate(chosen):
            views, own = len(seen.tokens) // len(images), len(evidence.tokens) // len(chosen)
            ((word, value),) = namer.name_regions(evidence, place * own, regions)
            ((other, more),) = namer.name_regions(seen, index * views, regions)
            assert word == other
            assert value == pytest.approx(more, abs=1e-5)
    again, none = judge(model, images[:2], verdicts, explain=False)
    assert none is None
    torch.testing.assert_close(again.anomaly_map, wanted.anomaly_map[:2])  # type: ignore[index]


@torch.no_grad()
def test_without_names(tiny: ClipBackbone) -> None:
    model, verdicts, images = make(tiny, 1, named=False)
    found, texts = judge(model, images, verdicts, explain=True)
    assert texts is None
    assert model.passes == ALL - REFERENCES
    torch.testing.assert_close(found.pred_score, model(images).pred_score)


@torch.no_grad()
def test_evidence_that_was_not_taken_stays(tiny: ClipBackbone) -> None:
    model, verdicts, images = make(tiny, 1)
    model.explain(images[:2])
    before = model.namer.evidence  # type: ignore[union-attr]
    judge(model, images[[1, 6]], verdicts, explain=True)
    assert model.namer.evidence is before  # type: ignore[union-attr]


@pytest.mark.parametrize(("tiles", "side", "views", "kept"), [(1, SIDE, 1, 2), (1, SIDE, 1, 0), (2, 56, 5, 2)])
def test_memory_is_bounded(tiny: ClipBackbone, tiles: int, side: int, views: int, kept: int) -> None:
    each = 4 * side * side + views * 4 * (16 + 1) * tiny.embed_dim  # a map, 16 patches and an image embedding
    _, verdicts, images = make(tiny, tiles, budget=(kept + 1) * each - 1)
    assert list(verdicts.known) == [key_of(image) for image in images[:kept]]
    own = next(iter(verdicts.known.values())).anomaly_map if kept else torch.empty(0)
    assert own.untyped_storage().nbytes() <= 4 * side * side, "no map holds on to those of all images"


def test_copies_of_a_model_have_no_pictures(tiny: ClipBackbone) -> None:
    image = torch.rand(3, 4, 6)
    verdicts = Verdicts(2**20, ("settings",), {key_of(image): Verdict(torch.tensor(0.5), image[0])})
    for other in (pickle.loads(pickle.dumps(verdicts)), copy.deepcopy(verdicts)):
        assert other == Verdicts(2**20)


def test_keys_tell_contents_and_shapes_apart() -> None:
    image = torch.rand(3, 4, 6)
    assert key_of(image) == key_of(image.clone())
    assert key_of(image) == key_of(torch.stack([image, image], dim=-1)[..., 0]), "whatever it lies like in memory"
    other = image.clone()
    other[1, 2, 3] += 1e-6
    assert len({key_of(each) for each in (image, other, image.reshape(3, 6, 4), image.double())}) == 4


def test_verdicts_hold_for_the_settings_they_were_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomalib_zsclip.models.readiness.snapshot", lambda module: (module.image_size,))
    module = SimpleNamespace(verdicts=Verdicts(made_for=(96,)), image_size=96)
    assert valid_verdicts(module) is module.verdicts  # type: ignore[arg-type]
    module.image_size = 128
    assert valid_verdicts(module) is None  # type: ignore[arg-type]
    assert valid_verdicts(SimpleNamespace(verdicts=None, image_size=96)) is None  # type: ignore[arg-type]
