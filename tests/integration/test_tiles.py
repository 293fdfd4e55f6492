"""Tiles on every way: folders of mixed sizes, tests, checkpoints, references, learning, exports."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from anomalib.deploy import OpenVINOInferencer
from anomalib.engine import Engine
from PIL import Image

from anomalib_zsclip import AnomalyClip, ZeroShotTransfer, ZsClip
from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.images.tiling import working_size
from anomalib_zsclip.models.zero_shot_model import ZeroShotModel
from tests.builtin_models import FEW_PROMPTS, MODELS, make_model, save

SIDE = 32
SIZES = ((70, 81), (30, 20), (40, 150), (24, 24))
"""Height and width of pictures: of several tiles, smaller than a tile, and wide."""


def write(path: Path, size: tuple[int, int], seed: int, *, spot: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(seed).integers(90, 160, (*size, 3), dtype=np.uint8)
    if spot:
        picture[size[0] // 2 : size[0] // 2 + 6, size[1] // 2 : size[1] // 2 + 8] = 255
    Image.fromarray(picture).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    for index, size in enumerate(SIZES):
        write(root / "good" / f"{index}.png", size, index)
        write(root / "bad" / f"{index}.png", size, 10 + index, spot=True)
        mask = np.zeros(size, np.uint8)
        mask[size[0] // 2 : size[0] // 2 + 6, size[1] // 2 : size[1] // 2 + 8] = 255
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    return root


def small(**arguments: Any) -> ZsClip:
    few = {"prompts": FEW_PROMPTS, "rvs": "mean", "text_cache": False}
    return ZsClip(
        **{"backbone": "builtin", "heads": ["sdp"], "sdp": few, "image_size": SIDE, "visualizer": False} | arguments
    )


def engine(folder: Path) -> Engine:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Engine(default_root_dir=folder / "results", accelerator="cpu", devices=1, **quiet)


def data_of(folder: Path, name: str = "mixed") -> Folder:
    return Folder(
        name=name, root=folder, normal_dir="good", normal_test_dir="good", abnormal_dir="bad", mask_dir="masks",
        num_workers=0, val_split_mode="same_as_test", eval_batch_size=4,
    )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_tiles_and_has_the_whole_among_them(name: str, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 60, 75, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = make_model(name, tmp_path, image_size=SIDE).eval()(images)
        whole = make_model(name, tmp_path, image_size=SIDE, tiles=2, tile_share=0.0).eval()(images)
        tiled = make_model(name, tmp_path, image_size=SIDE, tiles=(1, 2), max_tiles=2, view_chunk=1).eval()(images)
    torch.testing.assert_close(whole.pred_score, alone.pred_score, rtol=0, atol=1e-6)
    assert whole.anomaly_map.shape == (2, 56, 56)
    assert tiled.anomaly_map.shape == (2, SIDE, 56)
    assert not torch.equal(tiled.pred_score, alone.pred_score)


@pytest.mark.parametrize("tiles", ["auto", 2])
def test_a_folder_of_mixed_sizes(folder: Path, tmp_path: Path, tiles: Any) -> None:
    model = small(tiles=tiles, save_maps=True)
    found = engine(tmp_path).predict(model, data_path=folder / "bad")
    assert found is not None
    for batch, size in zip(found, SIZES, strict=True):
        grid = model.pre_processor.resize.tiling.grid(size, (SIDE, SIDE))
        assert tuple(batch.anomaly_map.shape[-2:]) == working_size(grid, (SIDE, SIDE)) == tuple(batch.image.shape[-2:])
        assert tuple(batch.pred_mask.shape[-2:]) == working_size(grid, (SIDE, SIDE))
        read = torch.from_numpy(np.asarray(Image.open(batch.image_path[0])).copy()).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            assert torch.allclose(model(read).pred_score, batch.pred_score, atol=1e-6)
    written = sorted((tmp_path / "results").rglob("*.tiff"))
    assert [Image.open(path).size[::-1] for path in written] == list(SIZES)


def test_a_data_module_of_mixed_sizes(folder: Path, tmp_path: Path) -> None:
    data, seen = data_of(folder), []
    model = small(tiles="auto")
    step = model.test_step

    def noting(batch: Any, *args: Any) -> Any:
        seen.append((tuple(batch.image.shape[-2:]), tuple(batch.gt_mask.shape[-2:])))
        return step(batch, *args)

    model.test_step = noting
    results = engine(tmp_path).test(model, datamodule=data)
    assert data.eval_batch_size == 4, "given back"
    assert 0 <= results[0]["pixel_AUPRO"] <= 1
    assert len({sheet for sheet, _ in seen}) == 3
    sizes = {working_size(model.pre_processor.resize.tiling.grid(size, (SIDE, SIDE)), (SIDE, SIDE)) for size in SIZES}
    assert {mask for _, mask in seen} <= sizes


def test_thresholds_and_references_are_made_anew_for_other_tiles(folder: Path, tmp_path: Path) -> None:
    model = small(tiles=2, k_shot=2, normal_dir=folder / "good").eval()
    model.prepare()
    made = model.post_processor.normal_scores.clone()
    assert model.model.memory_bank.owners.tolist() == [0] * 5 + [1] * 5
    path = save(model, tmp_path / "model.ckpt")
    same = ZsClip.load_from_checkpoint(path)
    same.prepare()
    assert torch.equal(same.post_processor.normal_scores, made)
    assert torch.equal(same.model.memory_bank.owners, model.model.memory_bank.owners)
    for other in ({"tiles": "auto"}, {"tile_share": 0.25}):
        loaded = ZsClip.load_from_checkpoint(path, **other)
        loaded.prepare()
        assert not torch.allclose(loaded.post_processor.normal_scores, made), other
    assert loaded.model.memory_bank.patches.shape == model.model.memory_bank.patches.shape


def test_all_views_of_an_image_outside_the_bank_stand_in_for_one_that_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, judge = [], ZeroShotModel.judge

    def noting(self: ZeroShotModel, images: torch.Tensor, *rest: Any) -> Any:
        given.append(rest)
        return judge(self, images, *rest)

    monkeypatch.setattr(ZeroShotModel, "judge", noting)
    model = small(tiles=2, k_shot=2, normal_dir=folder / "good").eval()
    model.prepare()
    bank = model.model.memory_bank
    left_out = [rest for rest in given if rest]
    assert [number for number, _ in left_out] == [0, 1]
    for _, substitute in left_out:
        assert substitute.shape == (len(bank.patches), 5, *bank.patches.shape[2:])
        assert all(not torch.allclose(view, known) for view in substitute[0] for known in bank.patches[0])


def test_a_change_is_seen_by_plain_calls(folder: Path) -> None:
    model = small(tiles=2, normal_dir=folder / "good").eval()
    model.pre_processor.resize.published_masks = True
    images = torch.rand(1, 3, 60, 75, generator=torch.Generator().manual_seed(0))

    def scores() -> torch.Tensor:
        with torch.no_grad():
            model(images)
        return model.post_processor.normal_scores.clone()

    made = [scores()]
    model.model.views = replace(model.model.views, tile_share=1.0)
    made.append(scores())
    model.tiles = (1, 3)
    assert model.tiles == (1, 3)
    assert model.pre_processor.resize.published_masks
    made.append(scores())
    model.tiles = 1
    made.append(scores())
    assert all(not torch.allclose(one, other) for one, other in pairwise(made))
    assert torch.equal(scores(), made[-1])
    with torch.no_grad():
        assert torch.equal(model(images).anomaly_map, small(normal_dir=folder / "good").eval()(images).anomaly_map)


def test_tiles_need_the_default_pre_processor() -> None:
    with pytest.raises(ArgumentError, match="tiles=2 needs the default pre-processor"):
        small(tiles=2, pre_processor=False)
    with pytest.raises(ArgumentError, match="tiles=2 needs the default pre-processor"):
        small(pre_processor=False).tiles = 2


@pytest.mark.parametrize("export", ["to_torch", "to_onnx", "to_openvino"])
def test_an_export_asks_for_a_number(export: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="make the model with a number, such as tiles=2"):
        getattr(small(tiles="auto"), export)(tmp_path)


def test_exports_have_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    few = {"prompts_per_class": 50, "text_cache": False}
    model = small(heads=["random_word"], random_word=few, tiles=2, view_chunk=2).eval()
    # Two blocks of the tower: the others make the graph larger and test nothing of tiles.
    del model.model.backbone.clip.visual.transformer.resblocks[2:]
    path = model.to_onnx(tmp_path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    inferencer = OpenVINOInferencer(path, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})
    for shape in ((1, 3, 97, 31), (3, 3, 50, 80)):
        images = torch.rand(*shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted = model(images)
        onnx = dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True))
        openvino = inferencer.predict(images)
        for name in ("pred_score", "anomaly_map"):
            for found in (onnx[name], getattr(openvino, name)):
                assert np.abs(found - getattr(wanted, name).numpy()).max() < 1e-3


def test_learning_keeps_to_whole_pictures(folder: Path, tmp_path: Path) -> None:
    """The prompts learned with tiles are those learned without, bit by bit."""
    learned = []
    for tiles in (1, 2, "auto"):
        torch.manual_seed(0)
        model = AnomalyClip(backbone="builtin", image_size=SIDE, learn=True, epochs=1, tiles=tiles, visualizer=False)
        parts = [data_of(folder, "auxiliary"), data_of(folder, "target")]
        data = ZeroShotTransfer(*parts, num_workers=0, train_batch_size=4, allow_overlap=True, seed=0)
        engine(tmp_path / str(tiles)).fit(model, datamodule=data)
        learned.append(torch.cat([value.flatten() for value in model.learning_head.learned_state().values()]))
    assert torch.equal(learned[0], learned[1])
    assert torch.equal(learned[0], learned[2])
