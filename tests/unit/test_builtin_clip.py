"""The built-in tiny CLIP: a real CLIP that open_clip loads, small, quick, and trained."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from anomalib.metrics import AUPRO
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from torchmetrics.functional.classification import binary_auroc

from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.clip.loading import BUILTIN_FOLDER
from anomalib_zsclip.data import generator as gen
from anomalib_zsclip.heads.sdp import SdpHead
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead

TOOLS = Path(__file__).parents[2] / "tools"
TOOL = TOOLS / "train_builtin_clip.py"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices gain nothing from threads, and equal sums need an equal order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load_tool(path: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The training script."""
    return load_tool(TOOL)


@pytest.fixture(scope="module")
def open_clip_model(tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    """Our configuration and weights in open_clip's own model."""
    folder = tmp_path_factory.mktemp("configs")
    shutil.copy(BUILTIN_FOLDER / "config.json", folder / "zsclip-builtin.json")
    open_clip.add_model_config(folder)
    model = open_clip.create_model("zsclip-builtin").eval()
    model.load_state_dict(load_file(BUILTIN_FOLDER / "model.safetensors"))
    return model


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Eight generated images as the tower takes them."""
    rng = np.random.default_rng(0)
    pixels = np.stack([gen.generate("knit", None, 128, rng).image for _ in range(8)])
    return torch.from_numpy(pixels).float().div(127.5).sub(1).permute(0, 3, 1, 2)


def test_open_clip_gives_the_same_embeddings(open_clip_model: torch.nn.Module, images: torch.Tensor) -> None:
    backbone = ClipBackbone.load("builtin")
    texts = ["a photo of a damaged bottle.", "flawless", "a cropped photo of the xqvw without scratch."]
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), open_clip_model.encode_image(images), atol=1e-5, rtol=0)
        expected = open_clip_model.encode_text(open_clip.tokenize(texts))
        torch.testing.assert_close(backbone.encode_text(texts), expected, atol=1e-5, rtol=0)


def test_the_weights_are_small_finite_and_half_precision() -> None:
    path = BUILTIN_FOLDER / "model.safetensors"
    assert path.stat().st_size <= 20 * 2**20
    for name, tensor in load_file(path).items():
        assert tensor.dtype == torch.float16, name
        assert torch.isfinite(tensor).all(), name


def test_heads_can_be_inferred_from_the_widths() -> None:
    config = json.loads((BUILTIN_FOLDER / "config.json").read_text())
    assert config["vision_cfg"]["head_width"] == 64
    assert config["text_cfg"]["heads"] == config["text_cfg"]["width"] // 64
    assert config["vision_cfg"]["layers"] % 4 == 0, "SDP reads four equal stages"


def test_loading_and_the_first_image_take_under_five_seconds() -> None:
    began = time.process_time()
    backbone = ClipBackbone.load("builtin")
    with torch.no_grad():
        backbone(torch.zeros(1, 3, 128, 128))
    assert time.process_time() - began < 5


def test_the_training_forward_equals_open_clip(
    tool: ModuleType, open_clip_model: torch.nn.Module, images: torch.Tensor
) -> None:
    tokens = open_clip.tokenize(["a photo of a cracked thing", "x"])
    with torch.no_grad():
        features = tool.encode_image(open_clip_model, images, torch.float32, values=True)
        ours = tool.join(open_clip_model, features.blocks[-1][:, 0])
        torch.testing.assert_close(ours, normalize(open_clip_model.encode_image(images), dim=-1), atol=1e-5, rtol=0)
        expected = normalize(open_clip_model.encode_text(tokens), dim=-1)
        torch.testing.assert_close(tool.encode_text(open_clip_model, tokens), expected, atol=1e-5, rtol=0)
    assert len(features.values) == len(features.blocks) == 8


def test_the_layers_trained_with_the_tower_are_those_of_sdp_plus(
    tool: ModuleType, open_clip_model: torch.nn.Module, images: torch.Tensor
) -> None:
    backbone = ClipBackbone.load("builtin")
    head = SdpPlusHead(SdpHead(backbone), backbone)
    head.setup(backbone, "object")
    layers = tool.build_layers(open_clip_model, tool.Texts())
    text = head.sdp.text_features
    with torch.no_grad():
        features = tool.encode_image(open_clip_model, images, torch.float32, values=False)
        undecided = tool.layer_maps(layers, features, text[:, 1] - text[:, 0])
        for layer in layers:
            torch.nn.init.normal_(layer.weight)
        head.fc.load_state_dict(layers.state_dict())
        tokens = head.patch_tokens(backbone.forward_intermediates(images, head.request(backbone)))
        expected = head.layer_logits(tokens, text).flatten(2)
        maps = tool.layer_maps(layers, features, text[:, 1] - text[:, 0])
    torch.testing.assert_close(torch.stack(list(maps.values())), expected, atol=1e-3, rtol=1e-4)
    assert torch.stack(list(undecided.values())).abs().max() < 20, "far from the saturation at 100"


def test_a_training_step_lowers_the_loss_and_is_deterministic(tool: ModuleType) -> None:
    def run() -> list[float]:
        torch.manual_seed(0)
        model, texts = tool.build_model(), tool.Texts()
        tool.initialise(model, torch.randn(2000, 192, generator=torch.Generator().manual_seed(1)))
        pairs = [tool.draw_pair(0, i) for i in range(4)]
        side = 32
        shrink = lambda image: tool.cv2.resize(image, (side, side), interpolation=tool.cv2.INTER_AREA)  # noqa: E731
        batch = torch.from_numpy(np.stack([shrink(p.good) for p in pairs] + [shrink(p.bad) for p in pairs]))
        cover = torch.from_numpy(np.stack([tool.cv2.resize(p.mask, (4, 4)) / 255 for p in pairs])).float()
        meta = np.array([[tool.FAMILIES.index(p.family), tool.KINDS.index(p.defect)] for p in pairs])
        matrices = [
            p for n, p in model.named_parameters() if n.startswith("visual.") and "resblocks" in n and p.ndim == 2
        ]
        optimizer = tool.Muon(matrices, dtype=torch.float32)
        totals = []
        for _ in range(3):
            rng = np.random.default_rng(3)
            terms = tool.losses(model, texts, batch, cover, meta, rng, torch.float32, values=True, kinds=True)
            total = sum(terms.values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(float(total.detach()))
        return totals

    first, again = run(), run()
    assert first == again
    assert first[-1] < first[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_makes_updates_orthogonal(tool: ModuleType, dtype: torch.dtype) -> None:
    matrices = torch.randn(3, 40, 24, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(tool.Muon._orthogonal(matrices.to(dtype)).float())
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_pairs_are_a_function_of_seed_and_number(tool: ModuleType) -> None:
    first, again = tool.draw_pair(1, 5), tool.draw_pair(1, 5)
    np.testing.assert_array_equal(first.bad, again.bad)
    assert not gen.FAMILIES[first.family].held_out
    assert not gen.DEFECTS[first.defect].held_out


def test_matching_captions_are_those_of_the_product_in_its_state(tool: ModuleType) -> None:
    meta = np.array([[0, 0], [1, 1]])
    for seed in range(20):
        captions, match = tool.contrastive_captions(np.random.default_rng(seed), meta)
        assert len(captions) == 4
        assert (match.diagonal() == 1).all(), "each image has its own caption"
        assert match[0, 1] == match[1, 0] == 0, "another product's caption is wrong"
        if match[0, 2]:
            assert match[2, 2], "a caption that fits the good twin of a pair as well is neutral"


def test_the_positive_rate_of_the_metric_is_right(tool: ModuleType) -> None:
    assert tool.auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == pytest.approx(0.75)
    assert tool.auroc(np.zeros(4), np.array([0, 1, 0, 1])) == pytest.approx(0.5)


@pytest.mark.parametrize("twins", [True, False])
def test_without_twins_the_good_picture_is_another_of_its_family(tool: ModuleType, twins: bool) -> None:
    ring = tool.Ring(1024, 1)
    for view in ring.views()[:2]:
        view[:] = np.arange(1024)[:, None, None, None] % 256  # a pair is known by its brightness
    _, _, mask, meta = ring.views()
    mask[:], meta[:, 0] = 255, np.arange(1024) % 8
    ring.made[0] = 2048
    feed = tool.Feed(ring, seed=0, twins=twins)
    images, _, chosen = feed.batch(step=0, pairs=16, side=16)
    first, second = images[:, 0, 0, 0].int().chunk(2)
    assert (first == second).all() == twins
    assert (first % 8 == second % 8).all(), "of the same family"
    assert (second.numpy() % 8 == chosen[:, 0]).all()


def test_larger_pictures_are_made_for_larger_batches(tool: ModuleType) -> None:
    rng = np.random.default_rng(0)
    plans = [tool.batch_plan(1.0, rng, [96, 192]) for _ in range(40)]
    assert {side for side, _ in plans} == {96, 192}
    pairs = dict(plans)
    assert 2 <= pairs[192] < pairs[96], "a step of large pictures has fewer"
    ring = tool.Ring(1024, 1, size=192)
    assert [view.shape[1:] for view in ring.views()[:3]] == [(192, 192, 3), (192, 192, 3), (192, 192)]
    ring.made[0] = 2048
    images, cover, _ = tool.Feed(ring, seed=0).batch(step=0, pairs=2, side=160)
    assert images.shape == (4, 160, 160, 3)
    assert cover.shape == (2, 20, 20)
    assert tool.draw_pair(1, 5, size=192).good.shape == (192, 192, 3)


@pytest.mark.parametrize(
    ("arguments", "hint"), [(["--tail", "0"], "above 0"), (["--side", "96", "100"], "multiple of 8"), ([], "one of")]
)
def test_arguments_of_the_training_that_make_no_sense_are_named(
    tool: ModuleType, arguments: list[str], hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    steps = ["--steps", "10"] if arguments else []
    monkeypatch.setattr(sys, "argv", ["train", "--out", "nowhere", *steps, *arguments])
    with pytest.raises(SystemExit):
        tool.main()
    assert hint in capsys.readouterr().err


def test_what_is_left_out_of_the_recipe_takes_its_terms_along(tool: ModuleType) -> None:
    local = {"block2", "block4", "refined", "stage1", "staged", "layer1", "kind_patch", "anchor_patch"}
    twin = {"pair", "block2 twin", "refined twin", "stage1 twin", "layer1 twin"}
    rest = {"state", "raw", "clip", "kind", "anchor_text", "anchor_image"}
    gone = {part: {name for name in local | twin | rest if pattern.match(name)} for part, pattern in tool.PARTS.items()}
    assert gone["twins"] == twin
    assert gone["patches"] == local | twin - {"pair"}


def twins(pairs: int, side: int) -> torch.Tensor:
    """Pairs of pictures of which both are the same, ``[2B, 3, S, S]``."""
    return torch.rand(pairs, 3, side, side, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)


def test_both_twins_stand_in_the_same_light(tool: ModuleType) -> None:
    images = twins(8, 32)
    lit = tool.relight(np.random.default_rng(0), images)
    assert lit.shape == images.shape
    assert lit.min() >= 0
    assert lit.max() <= 1
    assert torch.equal(*lit.chunk(2))
    assert (lit - images).abs().amax((1, 2, 3)).min() > 0.01, "no pair keeps its light"
    assert torch.equal(lit, tool.relight(np.random.default_rng(0), images)), "a function of the seed"


def test_what_a_margin_hides_is_no_defect(tool: ModuleType) -> None:
    images, cover = twins(16, 64), torch.ones(16, 8, 8)
    before = images.clone()
    tool.add_margins(np.random.default_rng(0), images, cover, share=1.0)
    assert torch.equal(*images.chunk(2)), "both twins have the same margin"
    changed = (images != before).any(1)[:16].float()
    assert changed.any((1, 2)).all()
    hidden = torch.nn.functional.avg_pool2d(changed, 8)
    assert ((cover < 1) == (hidden > 0)).all()


def test_a_margin_does_not_take_the_defect_away(tool: ModuleType) -> None:
    images, cover = twins(16, 64), torch.zeros(16, 8, 8)
    cover[:, 0], cover[:, -1], cover[:, :, 0], cover[:, :, -1] = 1, 1, 1, 1  # along the rim alone
    whole = cover.sum((1, 2))
    tool.add_margins(np.random.default_rng(0), images, cover, share=1.0)
    assert (cover.sum((1, 2)) >= 0.6 * whole).all()
    assert (cover.sum((1, 2)) < whole).any()


def test_a_run_that_goes_on_begins_with_the_kinds_as_the_texts_have_them(
    tool: ModuleType, open_clip_model: torch.nn.Module
) -> None:
    anchors = tool.kind_features(open_clip_model, tool.Texts())
    assert anchors.shape == (len(tool.KINDS), 64)
    torch.testing.assert_close(anchors.norm(dim=1), torch.full((len(tool.KINDS),), 8.0))
    crack = tool.encode_text(open_clip_model, tool.Texts().tokens(["object with a crack"]))
    assert int((crack @ anchors.T).argmax()) == tool.KINDS.index("crack")


def test_a_run_may_begin_at_the_mean_of_several_weights(tool: ModuleType, tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({"a": torch.full((2,), float(number)).half()}, tmp_path / f"{number}.safetensors")
    mean = tool.mean_weights([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])
    torch.testing.assert_close(mean, {"a": torch.full((2,), 1.5)})


def test_the_share_of_pairs_in_another_light_is_as_asked(tool: ModuleType) -> None:
    images = twins(400, 16)
    lit = tool.relight(np.random.default_rng(0), images, share=0.25)
    changed = (lit != images).any(1).any(1).any(1)
    assert torch.equal(*changed.chunk(2)), "both twins or none"
    assert 0.15 < changed.float().mean() < 0.35


def test_training_needs_no_anomalib() -> None:
    code = f"import sys, runpy; runpy.run_path({str(TOOL)!r}, run_name='tool'); print('anomalib' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"


def test_the_shipped_weights_localise_on_families_they_never_saw(
    tool: ModuleType, open_clip_model: torch.nn.Module
) -> None:
    scores = tool.monitor(open_clip_model, tool.Texts(), seed=5, count=48)
    assert scores["image"] > 0.6
    assert scores["block8"] > 0.75
    assert abs(scores["block8"] - scores["refined"]) < 0.05
    assert abs(scores["block8"] - scores["staged"]) < 0.05


@torch.no_grad()
def test_linear_layers_that_start_between_the_texts_prefer_neither() -> None:
    backbone = ClipBackbone.load("builtin")
    head = SdpPlusHead(SdpHead(backbone), backbone)
    head.setup(backbone, "object")
    load_tool(TOOLS / "learn_builtin_heads.py").start_between_texts(head)
    tokens = torch.randn(2, 4, 3, 3, backbone.width, generator=torch.Generator().manual_seed(0))
    assert head.layer_logits(tokens, head.sdp.text_features).abs().max() < 1e-3


def region_overlap(maps: torch.Tensor, masks: torch.Tensor) -> float:
    """AUPRO as anomalib has it."""
    metric = AUPRO(fields=["anomaly_map", "gt_mask"])
    low, high = maps.aminmax()
    metric.update(SimpleNamespace(anomaly_map=(maps - low) / (high - low), gt_mask=masks))
    return float(metric.compute())


@torch.no_grad()
def test_the_shipped_linear_layers_improve_on_sdp() -> None:
    rng = np.random.default_rng(3)
    families = [name for name, family in gen.FAMILIES.items() if family.held_out]
    kinds = [name for name, defect in gen.DEFECTS.items() if not defect.held_out]
    backbone = ClipBackbone.load("builtin")
    side = backbone.default_size
    samples = [gen.generate(str(rng.choice(families)), str(rng.choice(kinds)), side, rng) for _ in range(160)]
    pixels = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    masks = torch.from_numpy(np.stack([sample.mask for sample in samples])) > 0
    head = SdpPlusHead(SdpHead(backbone), backbone)
    head.setup(backbone, "object")
    head.load_linear_layers(BUILTIN_FOLDER / "sdp_plus.safetensors")
    raw = head.raw(
        backbone.forward_intermediates((pixels - mean) / std, head.request(backbone)), backbone, (side, side)
    )
    zero_shot, layers, both = (
        float(binary_auroc(maps.flatten(), masks.flatten()))
        for maps in (raw.map_zero_shot, raw.layer_maps.sum(0), raw.map_raw)
    )
    assert layers > 0.85
    assert both > zero_shot
    overlap, overlap_zero_shot = region_overlap(raw.map_raw, masks), region_overlap(raw.map_zero_shot, masks)
    assert overlap > overlap_zero_shot, "what the layers add is whole defects, small ones as much as large ones"
