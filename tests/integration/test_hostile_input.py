"""Nothing that is fed in breaks or fools the detectors: an error that says what is wrong, or a right answer."""

from __future__ import annotations

import csv
import inspect
import io
import itertools
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import open_clip
import pytest
import torch
from anomalib.data import PredictDataset
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from lightning.pytorch import Trainer
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from anomalib_zsclip import (
    AnomalyClip,
    ClipAd,
    ClipBackbone,
    MuSc,
    RandomWordClip,
    SyntheticDefects,
    ZeroShotTransfer,
    ZsClip,
)  # fmt: skip
from anomalib_zsclip import inspect as inspect_folder
from anomalib_zsclip.benchmark.comparison import comparable
from anomalib_zsclip.clip.architectures import build_model
from anomalib_zsclip.clip.weight_files import read_weights
from anomalib_zsclip.errors import ArgumentError, BackboneError, CheckpointError, ImageReadError, ZsClipError
from anomalib_zsclip.heads import random_word
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipOptions
from anomalib_zsclip.heads.memory_bank import MemoryBank
from anomalib_zsclip.heads.options import plain
from anomalib_zsclip.heads.random_word import RandomWordHead, RandomWordOptions
from anomalib_zsclip.heads.sdp import SdpHead, SdpOptions
from anomalib_zsclip.images.checks import UNREADABLE
from anomalib_zsclip.outputs import FixedScaleVisualizer, MonotonePostProcessor
from anomalib_zsclip.prompts.ensembles import state_sentences
from anomalib_zsclip.prompts.learned import load_prompts
from anomalib_zsclip.prompts.random_words import random_word_prompts
from tests.builtin_models import FEW_PROMPTS, make_model, random_prompts

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
FUZZ = 25


def picture(height: int = 24, width: int = 24) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def damage(content: bytes, rng: random.Random) -> bytes:
    """Cut short, or with some bits flipped."""
    damaged = bytearray(content)
    if rng.random() < 0.3:
        return bytes(damaged[: rng.randrange(len(damaged))])
    for _ in range(rng.choice((1, 1, 4, 50))):
        # Half of the time in the header, where most of what a parser believes is written.
        position = rng.randrange(min(300, len(damaged)) if rng.random() < 0.5 else len(damaged))
        damaged[position] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def predict(model: AnomalibModule, folder: Path, results: Path, **arguments: Any) -> list[Any]:
    return Engine(default_root_dir=results, **QUIET).predict(
        model, data_path=folder, return_predictions=True, **arguments
    )


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> AnomalibModule:
    model = make_model("RandomWordClip", tmp_path_factory.mktemp("detector"), image_size=64)
    model.prepare()
    return model.eval()


# ---------------------------------------------------------------------- images
def test_odd_images_are_read_rightly(detector: AnomalibModule, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    image = picture()
    grey = image.convert("L")
    same_as_plain = ["plain.png", "opaque.png", "wrong_extension.jpg", "upper.PNG", "sixteen_bits.png"]
    for name in same_as_plain:
        (folder / name).write_bytes(encoded(image, "PNG"))
    image.convert("RGBA").save(folder / "opaque.png")
    write_16_bit_png(np.asarray(image), folder / "sixteen_bits.png")
    same_as_grey = ["grey.png", "palette.png", "grey_alpha.png"]
    grey.save(folder / "grey.png")
    grey.convert("P").save(folder / "palette.png")
    grey.convert("LA").save(folder / "grey_alpha.png")
    grey.convert("1").save(folder / "black_and_white.png")
    image.convert("CMYK").save(folder / "four_colours.jpg")
    image.resize((1, 1)).save(folder / "one_pixel.png")
    image.resize((3000, 2)).save(folder / "wide.png")
    image.resize((1, 3000)).save(folder / "high.png")

    scores = {}
    for batch in predict(detector, folder, tmp_path):
        assert bool(batch.anomaly_map.isfinite().all())
        scores[Path(batch.image_path[0]).name] = float(batch.pred_score)
    assert len(scores) == len(list(folder.iterdir()))
    assert all(0 <= score <= 1 for score in scores.values())
    for group in (same_as_plain, same_as_grey):
        assert [scores[name] for name in group] == pytest.approx([scores[group[0]]] * len(group), abs=1e-5)


def write_16_bit_png(values: np.ndarray, path: Path) -> None:
    import cv2

    cv2.imwrite(str(path), values[..., ::-1].astype(np.uint16) * 257)


def test_unreadable_images_stop_no_folder(
    detector: AnomalibModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / "images"
    folder.mkdir()
    good = encoded(picture(), "PNG")
    (folder / "good.png").write_bytes(good)
    bad = {
        "empty.png": b"",
        "cut.png": good[: len(good) // 2],
        "text.png": b"this is no image",
        "flipped.png": good[:60] + bytes(byte ^ 0xFF for byte in good[60:]),
        "bomb.bmp": giant_bitmap(),
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    results = predict(detector, folder, tmp_path)
    assert [Path(batch.image_path[0]).name for batch in results] == ["good.png"]
    assert "1 of 6 images judged" in caplog.messages[-1], "the last line of the log"
    with next(tmp_path.rglob("predictions.csv")).open(newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert rows.keys() == bad.keys() | {"good.png"}
    for name in bad:
        assert rows[name]["error"]
        assert not rows[name]["pred_score"]
        assert name in caplog.messages[-1]
    assert "max_pixels=4294967296" in rows["bomb.bmp"]["error"]
    (folder / "good.png").unlink()
    with pytest.raises(ImageReadError, match=r"^None of the images can be read"):
        predict(detector, folder, tmp_path)


def giant_bitmap() -> bytes:
    """A small file that says it is an image of four billion pixels."""
    content = bytearray(encoded(picture(), "BMP"))
    content[18:22] = content[22:26] = (2**16).to_bytes(4, "little")
    return bytes(content)


def test_deep_grey_images_are_scaled_and_not_read_as_white(detector: AnomalibModule, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    grey = np.asarray(picture().convert("L"))
    Image.fromarray(grey).save(folder / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(grey.astype(np.float32) / 255).save(folder / "floats.tiff")
    scores = [float(batch.pred_score) for batch in predict(detector, folder, tmp_path)]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
@pytest.mark.filterwarnings("ignore")
def test_fuzzed_images_are_unreadable_or_scored(detector: AnomalibModule, tmp_path: Path, kind: str) -> None:
    rng, content = random.Random(kind), encoded(picture(), kind)
    images = []
    for number in range(FUZZ):
        path = tmp_path / f"{number}.{kind.lower()}"
        path.write_bytes(damage(content, rng))
        try:
            images.append(PredictDataset(path)[0].image)
        except UNREADABLE:
            continue
    for image in images:
        height, width = image.shape[-2:]
        if height * width <= 1_000_000:
            assert_sound(detector, image)


@torch.no_grad()
def assert_sound(model: AnomalibModule, image: Tensor | None = None) -> None:
    """Scores in [0, 1], not NaN."""
    images = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) if image is None else image
    result = model(images.unsqueeze(0))
    for values in (result.pred_score, result.anomaly_map):
        assert bool(((values >= 0) & (values <= 1)).all())


# ---------------------------------------------------------------------- weight files
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 1, "layers": 2},
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {key: value.clone() for key, value in open_clip.model.CLIP(**TINY).state_dict().items()}


def save_torchscript(weights: dict[str, Tensor], path: Path) -> None:
    """As OpenAI's files: the weights are attributes of modules within modules."""
    root = nn.Module()
    for key, value in weights.items():
        *parents, name = key.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.register_parameter(name, nn.Parameter(value.half(), requires_grad=False))
    torch.jit.save(torch.jit.script(root), path)


WRITERS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    ".safetensors": save_file,
    ".pt": torch.save,
    ".jit.pt": save_torchscript,
}


@torch.no_grad()
def embeds_finitely(path: Path) -> None:
    backbone = ClipBackbone(build_model(TINY, read_weights(path).tensors, "The file"))
    ids = torch.arange(8).unsqueeze(0)
    assert bool(backbone(torch.rand(1, 3, 16, 16)).isfinite().all())
    assert bool(backbone.encode_prompts(backbone.embed_tokens(ids), torch.tensor([7])).isfinite().all())


@pytest.mark.parametrize("ending", WRITERS)
def test_fuzzed_weights_are_refused_or_give_finite_embeddings(
    weights: dict[str, Tensor], tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"weights{ending}"
    WRITERS[ending](weights, path)
    embeds_finitely(path)
    rng, content, refused = random.Random(ending), path.read_bytes(), 0
    for _ in range(FUZZ):
        path.write_bytes(damage(content, rng))
        try:
            embeds_finitely(path)
        except BackboneError:
            refused += 1
    assert refused > FUZZ // 4


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_impossible_weights_are_refused(weights: dict[str, Tensor], value: float) -> None:
    broken = {**weights, "visual.proj": weights["visual.proj"].clone()}
    broken["visual.proj"][0, 0] = value
    with pytest.raises(BackboneError, match=r"visual\.proj has values"):
        build_model(TINY, broken, "The file")


def test_swapped_weights_are_refused(weights: dict[str, Tensor]) -> None:
    one, other = "visual.proj", "token_embedding.weight"
    with pytest.raises(BackboneError, match="instead of"):
        build_model(TINY, {**weights, one: weights[other], other: weights[one]}, "The file")


def test_torchscript_weights_are_those_of_the_archive(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_torchscript(weights, tmp_path / "weights.pt")
    read = read_weights(tmp_path / "weights.pt").tensors
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[key], weights[key].half().float()) for key in weights)


# ---------------------------------------------------------------------- code in files
class Attack:
    """Writes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.marker, "ran")


class ScriptedAttack(nn.Module):
    """Writes a file where TorchScript loads it."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = marker
        self.weight = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, str, bool]:
        return self.weight, self.marker, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        self.weight = state[0]
        self.marker = state[1]
        self.training = state[2]
        torch.save(state[0], state[1])


READERS: dict[str, Callable[[Path], Any]] = {
    "weights": read_weights,
    "prompts": load_prompts,
    "linear layers": lambda path: ClipAd("sdp+", "builtin", checkpoint=path, prompts=FEW_PROMPTS, rvs="mean"),
    "checkpoint": RandomWordClip.load_from_checkpoint,
}


@pytest.mark.parametrize("name", READERS)
def test_code_in_pickles_never_runs(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "attack.pt"
    attack = Attack(marker)
    contents = (attack, {"state_dict": attack}, {"prompt_learner": {"ctx_pos": attack}}, {"linear_layers": attack})
    for content in contents:
        for save in (torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))):
            save(content, path)
            with pytest.raises((BackboneError, CheckpointError), match=r"pickled|cannot be|damaged"):
                READERS[name](path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(attack))
    assert marker.exists(), "the attack is a real one"


def test_code_in_a_checkpoint_never_runs_through_the_engine(detector: AnomalibModule, tmp_path: Path) -> None:
    picture().save(tmp_path / "image.png")
    torch.save({"state_dict": {}, "callbacks": Attack(tmp_path / "marker")}, tmp_path / "attack.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        predict(detector, tmp_path / "image.png", tmp_path, ckpt_path=tmp_path / "attack.ckpt")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", READERS)
def test_code_in_torchscript_never_runs(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "attack.pt"
    torch.jit.save(torch.jit.script(ScriptedAttack(str(marker))), path)
    with pytest.raises((BackboneError, CheckpointError)):
        READERS[name](path)
    assert not marker.exists()
    torch.jit.load(path)
    assert marker.exists(), "the attack is a real one"


def test_torchscript_pickle_may_name_nothing_but_its_own_building_blocks(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_torchscript(weights, tmp_path / "good.pt")
    marker = tmp_path / "marker"
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            content = pickle.dumps(Attack(marker), 2) if name.endswith("/data.pkl") else good.read(name)
            bad.writestr(name, content)
    with pytest.raises(BackboneError, match="pickled"):
        read_weights(tmp_path / "bad.pt")
    assert not marker.exists()


# ---------------------------------------------------------------------- checkpoints
@pytest.fixture(scope="module")
def checkpoint(detector: AnomalibModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    trainer = Trainer(logger=False, default_root_dir=folder, **QUIET)
    trainer.strategy.connect(detector)
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


def test_fuzzed_checkpoints_are_refused_or_unharmed(detector: AnomalibModule, checkpoint: Path, tmp_path: Path) -> None:
    wanted = detector.model.heads.state_dict()
    content, rng, refused = checkpoint.read_bytes(), random.Random(0), 0
    for _ in range(FUZZ):
        (tmp_path / "model.ckpt").write_bytes(damage(content, rng))
        try:
            found = RandomWordClip.load_from_checkpoint(tmp_path / "model.ckpt").model.heads.state_dict()
        except CheckpointError:
            refused += 1
        else:
            assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert refused > FUZZ // 2


def set_value(state: dict[str, Tensor], value: float) -> None:
    state["model.heads.random_word.network.0.weight"][0, 0] = value


def swap(state: dict[str, Tensor], one: str, other: str) -> None:
    one, other = f"model.heads.random_word.{one}", f"model.heads.random_word.{other}"
    state[one], state[other] = state[other], state[one]


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nan": lambda content: set_value(content["state_dict"], torch.nan),
    "inf": lambda content: set_value(content["state_dict"], -torch.inf),
    "swapped weights": lambda content: swap(content["state_dict"], "network.0.weight", "network.2.weight"),
    "swapped buffers": lambda content: swap(content["state_dict"], "center", "network.0.weight"),
    "missing weights": lambda content: content["state_dict"].pop("model.heads.random_word.network.0.weight"),
    "unknown weights": lambda content: content["state_dict"].update({"model.other": torch.ones(1)}),
    "no tensor": lambda content: content["state_dict"].update({"model.heads.random_word.center": "zero"}),
    "no state dict": lambda content: content.pop("state_dict"),
    "no backbone": lambda content: content.pop("zsclip_backbone"),
    "other backbone": lambda content: content["zsclip_backbone"].update(fingerprint="0"),
    "backbone of another form": lambda content: content.update(zsclip_backbone=[1]),
    "wrong arguments": lambda content: content["hyper_parameters"].update(sigma="wide"),
    "unknown backbone": lambda content: content["hyper_parameters"].update(backbone="none"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_checkpoints_are_refused(checkpoint: Path, tmp_path: Path, change: str) -> None:
    content = torch.load(checkpoint, weights_only=True)
    CHANGES[change](content)
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(ZsClipError):
        RandomWordClip.load_from_checkpoint(tmp_path / "model.ckpt")


# ---------------------------------------------------------------------- texts
TEXTS = {
    "long": "x" * 10_000,
    "many words": "metal nut " * 1_000,
    "emoji": "🔩🧲👩‍🔧",
    "null byte": "a\0b",
    "control characters": "\x01\x02\x1b[31m\x7f\u202e\r\n\t",
    "braces": "{} {0} {name} %s %(x)d",
    "special tokens": "<start_of_text> <end_of_text>",
    "spaces": "   ",
    "combining": "a" + "\u0301" * 500,
    "half a character": "a\ud800b",
    "markup": "&amp;<script>&#0;",
}


@pytest.mark.parametrize("name", TEXTS)
def test_any_text_may_be_a_class_name_or_a_state(detector: AnomalibModule, name: str) -> None:
    backbone = detector.model.backbone
    text = SdpHead(backbone, prompts=FEW_PROMPTS, rvs="mean", text_cache=False).compile_text(backbone, TEXTS[name])
    torch.testing.assert_close(text.norm(dim=0), torch.ones(2))
    if "{" not in TEXTS[name]:
        head = RandomWordHead(
            backbone.embed_dim, prompts_per_class=10, anomalous_states=[TEXTS[name] + " {}"], text_cache=False
        )
        head.setup(backbone, "object")
        probability = head.probability(torch.ones(1, backbone.embed_dim))
        assert 0 <= float(probability) <= 1


@pytest.mark.parametrize("count", [0, -1, 1_000_001, 10**30, float("nan")])
def test_number_of_prompts_is_bounded(count: float) -> None:
    with pytest.raises(ArgumentError, match="1,000,000"):
        random_word_prompts(count)


def test_number_of_sentences_of_an_ensemble_is_bounded(tmp_path: Path) -> None:
    phrases = [f"{{}} {number}" for number in range(1000)]
    file = tmp_path / "prompts.yaml"
    file.write_text(json.dumps({"normal": phrases, "anomalous": ["bad {}"], "templates": phrases}))
    with pytest.raises(ArgumentError, match="1001000 sentences"):
        state_sentences("object", prompts=file)


@pytest.mark.parametrize("states", [[], "{}", [""], ["{} {}"], ["{0}"], ["{} }"], [None], ["{} {x}"]])
def test_phrases_without_their_one_place_are_refused(states: Any) -> None:
    with pytest.raises(ArgumentError, match="anomalous_states"):
        random_word_prompts(10, anomalous_states=states)


@pytest.mark.parametrize(
    "content", [b"\0", b"normal: {}", b"- 1", b"\xff\xfe\x00", b"normal: [!!python/object:os.system x]"]
)
def test_prompt_files_of_another_form_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prompts.yaml").write_bytes(content)
    with pytest.raises(ArgumentError, match=r"prompts\.yaml"):
        state_sentences("object", prompts=tmp_path / "prompts.yaml")


# ---------------------------------------------------------------------- arguments
STRANGE = (float("nan"), float("inf"), -1, 0, 1e308, "many", [], None, True)
FEW: dict[str, Any] = {"prompts": FEW_PROMPTS, "rvs": "mean", "text_cache": False}
ARGUMENTS: list[tuple[type[AnomalibModule], dict[str, Any], tuple[str, ...]]] = [
    (
        RandomWordClip,
        {"prompts_per_class": 10, "text_cache": False},
        ("prompts_per_class", "words", "letters", "text_noise", "localization", "centering", "blocks", "scales",
         "stride", "window_chunk", "sigma", "image_score", "seed", "image_size", "precision", "normal_states", "templates"),
    ),
    (ClipAd, FEW, ("variant", "sigma", "layers", "rvs", "rvs_params", "domain", "image_score", "class_name", "checkpoint")),
    (AnomalyClip, {}, ("temperature", "sigma", "layers", "value_value_blocks", "image_score", "n_ctx", "depth", "t_n_ctx")),
    (
        AnomalyClip,
        {"variant": "crane"},
        ("variant", "temperature", "sigma", "self_correlation_blocks", "pooled_share", "upsampled", "image_score",
         "map_loss_weight", "n_ctx"),
    ),
    (
        ZsClip,
        {"heads": ["sdp"], "sdp": FEW, "random_word": {"prompts_per_class": 10}, "explain": False},
        ("heads", "weights", "map_share", "memory_share", "k_shot", "normal_images", "false_alarms", "threshold", "sdp"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("model", "usual", "names"), ARGUMENTS, ids=[entry[0].__name__ for entry in ARGUMENTS])
def test_strange_arguments_are_refused_or_do_no_harm(
    model: type[AnomalibModule],
    usual: dict[str, Any],
    names: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if model is AnomalyClip:
        usual = {"checkpoint": random_prompts(tmp_path, usual.get("variant", "anomaly_clip"))} | usual
    backbone = ClipBackbone.load("builtin")
    monkeypatch.setattr(random_word, "train_text_network", partial(random_word.train_text_network, epochs=2))
    monkeypatch.setattr(ClipBackbone, "load", lambda *args, **kwargs: backbone)
    refused, harm = 0, []
    for name, value in itertools.product(names, STRANGE):
        outcome = outcome_of(lambda name=name, value=value: model(**{"backbone": "builtin", **usual, name: value}))
        refused += isinstance(outcome, (ZsClipError, TypeError))
        if outcome is not None and not isinstance(outcome, (ZsClipError, TypeError)):
            harm.append(f"{name}={value!r}: {type(outcome).__name__}: {outcome}")
    assert not harm
    assert refused > 3 * len(names)


def outcome_of(make: Callable[[], AnomalibModule]) -> Exception | None:
    """What goes wrong with a model, if anything does."""
    try:
        assert_sound(make().eval())
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("weight", [torch.nan, torch.inf, -1.0, 0.0])
def test_weights_of_heads_that_are_none_are_refused(weight: float) -> None:
    with pytest.raises(ArgumentError, match="weights"):
        ZsClip(heads=["sdp"], weights={"sdp": weight}, backbone="builtin", sdp=FEW)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 4, 64), (0,)])
def test_tensors_that_are_no_images_are_refused(detector: AnomalibModule, shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError):
        detector.model(torch.zeros(shape))


def test_memory_takes_a_share_of_normal_patches_alone() -> None:
    for quantile in (0, 1, float("nan"), -1):
        with pytest.raises(ArgumentError, match="quantile"):
            MemoryBank(quantile=quantile)


# ---------------------------------------------------------------------- arguments of the wrong kind, from Python
MODELS = [ZsClip, RandomWordClip, ClipAd, AnomalyClip, MuSc]
OTHERS = ("self", "backbone", "pretrained", "pre_processor", "post_processor", "evaluator", "visualizer")
"""Arguments that have checks and tests of their own, or are objects of anomalib's."""
OPTIONS = {RandomWordClip: RandomWordOptions, ClipAd: SdpOptions, AnomalyClip: AnomalyClipOptions}


def arguments_of(model: type[AnomalibModule]) -> list[str]:
    """All arguments of a model, those of its head among them."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    own = [name for name, found in inspect.signature(model.__init__).parameters.items() if found.kind in kinds]
    options = fields(OPTIONS[model]) if model in OPTIONS else ()
    return [name for name in dict.fromkeys([*own, *(field.name for field in options)]) if name not in OTHERS]


@pytest.fixture(scope="module")
def builtin() -> ClipBackbone:
    return ClipBackbone.load("builtin")


def refusal(model: type[AnomalibModule], values: dict[str, Any]) -> str | None:
    """What a model says to these values, or nothing."""
    unlabelled = {"unlabelled": 8} if model in (ZsClip, MuSc) else {}
    try:
        model(**{"backbone": "builtin"} | unlabelled | values)
    except ZsClipError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore:normal_quantile is deprecated")
@pytest.mark.parametrize("value", [3.7, "many", object()], ids=["number", "text", "object"])
@pytest.mark.parametrize("model", MODELS)
def test_an_argument_of_the_wrong_kind_is_refused_in_our_words(
    model: type[AnomalibModule], value: object, builtin: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipBackbone, "load", lambda *_, **__: builtin)  # once is enough
    said = {name: refusal(model, {name: value}) for name in arguments_of(model)}
    refused = {name: message for name, message in said.items() if message is not None}
    assert [name for name, message in refused.items() if name not in message and str(value) not in message] == []
    assert len(refused) > 10


DOORS: list[tuple[Callable[[], object], str]] = [
    (lambda: ClipAd(variant="sdp+", learn=True, epochs=None), "epochs=None"),
    (lambda: AnomalyClip(learn=True, epochs=-1), "epochs=-1"),
    (lambda: AnomalyClip(learn=True, cache_budget_gb="4"), "cache_budget_gb='4'"),
    (lambda: AnomalyClip(learn="false"), "learn='false'"),
    (lambda: AnomalyClip(variant="crane", image_tokens="no"), "image_tokens='no'"),
    (lambda: AnomalyClip(round_prompts="no"), "round_prompts='no'"),
    (lambda: ZsClip(report="false"), "report='false'"),
    (lambda: ZsClip(explain=1), "explain=1"),
    (lambda: ZsClip(explain=False, defect_words=3), "defect_words=3"),
    (lambda: ZsClip(heads=["sdp"], weights={"sdp": 1, "crane": 1}), "names 'crane'"),
    (lambda: ZsClip(heads=["sdp"], crane_checkpoint="typo.pth"), "crane_checkpoint='typo.pth'"),
    (lambda: ZsClip(sdp_plus_checkpoint=False), "sdp_plus_checkpoint=False"),
    (lambda: MuSc(windows="1,2,3"), "windows='1,2,3'"),
    (lambda: MuSc(windows=3), "windows=3"),
    (lambda: RandomWordClip(blocks=(True, 3)), r"blocks\[0\]=True"),
    (lambda: RandomWordClip(blocks=(3, 2)), r"blocks=\(3, 2\)"),
    (lambda: ClipAd(rvs={"dbscan": {"eps": 1.5}}), "rvs={"),
    (lambda: ClipAd(rvs_params=0), "rvs_params=0"),
    (lambda: inspect_folder(None), "images=None"),
    (lambda: inspect_folder(["a.png", "b.png"]), "images="),
    (lambda: inspect_folder("parts", model="ZsClip"), "model='ZsClip'"),
    (lambda: inspect_folder("parts", output=3), "output=3"),
    (lambda: SyntheticDefects(["knit", "roof"]), "category="),
    (lambda: SyntheticDefects(image_size="256"), "image_size='256'"),
    (lambda: SyntheticDefects(image_size=(256, 256)), "image_size="),
    (lambda: SyntheticDefects(num_train=10.5), "num_train=10.5"),
    (lambda: SyntheticDefects(num_test_good=True), "num_test_good=True"),
    (lambda: SyntheticDefects(seed=1.5), "seed=1.5"),
    (lambda: SyntheticDefects(defect_scale="0.5"), "defect_scale='0.5'"),
    (lambda: SyntheticDefects(root=3), "root=3"),
    (lambda: ZeroShotTransfer("Visa", SyntheticDefects()), "auxiliary='V'"),
    (lambda: ZeroShotTransfer(SyntheticDefects(), "MVTecAD"), "target='MVTecAD'"),
    (
        lambda: ZeroShotTransfer(SyntheticDefects("wood"), SyntheticDefects(), allow_overlap="false"),
        "allow_overlap='false'",
    ),
    (lambda: ZeroShotTransfer(SyntheticDefects("wood"), SyntheticDefects(), seed=-1), "seed=-1"),
    (lambda: FixedScaleVisualizer(field_size=256), "field_size=256"),
    (lambda: FixedScaleVisualizer(field_size=(256, "256")), r"field_size\[1\]='256'"),
    (lambda: MonotonePostProcessor().threshold_for(5), "false_alarms=5"),
    (lambda: comparable("RandomWordClip", [{"promts_per_class": 5}]), "'promts_per_class'"),
]


@pytest.mark.parametrize(("call", "message"), DOORS, ids=[message for _, message in DOORS])
def test_every_door_refuses_in_our_words(
    call: Callable[[], object], message: str, builtin: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipBackbone, "load", lambda *_, **__: builtin)
    with pytest.raises(ArgumentError, match=message):
        call()


@pytest.mark.parametrize("name", [None, Path("weights.pt"), ["builtin"], 3])
def test_a_backbone_is_a_name(name: object) -> None:
    with pytest.raises(BackboneError, match=r"backbone=.*must be a name.*pretrained="):
        ZsClip(backbone=name)  # type: ignore[arg-type]


def test_weights_of_a_head_that_may_come_yet_are_a_warning(
    builtin: ClipBackbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ClipBackbone, "load", lambda *_, **__: builtin)
    model = ZsClip(weights={"sdp": 0.5, "crane": 0.5})
    assert "names 'crane'" in caplog.text
    assert model.model.weights["sdp"] == 1
    caplog.clear()
    ZsClip(weights={"sdp": 0.5, "random_word": 0.5})
    assert "names" not in caplog.text


def test_numbers_and_lists_of_other_libraries_are_as_good_as_python_s(
    tmp_path: Path, builtin: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipBackbone, "load", lambda *_, **__: builtin)
    given = {"layers": [np.int64(3), np.int64(6)], "windows": [np.int64(2)], "threshold": np.float32(0.5)}
    listed = OmegaConf.create({"degrees": [1, 3]})["degrees"]
    model = MuSc(backbone="builtin", degrees=listed, **given)
    same = MuSc(backbone="builtin", degrees=[1, 3], layers=[3, 6], windows=[2], threshold=0.5)
    assert plain(model.model.memory_bank.recipe(builtin)) == plain(same.model.memory_bank.recipe(builtin))
    trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = MuSc.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.model.memory_bank.blocks(builtin) == [3, 6]
    assert loaded.threshold == 0.5
    blocks = OmegaConf.create({"blocks": [2, 3], "scales": [2]})
    assert RandomWordOptions(**blocks).recipe() == RandomWordOptions(blocks=(2, 3), scales=(2,)).recipe()


# ---------------------------------------------------------------------- configuration files
CONFIGS: list[tuple[type[AnomalibModule], dict[str, Any]]] = [
    (RandomWordClip, {"prompts_per_class": "many"}),
    (RandomWordClip, {"words": [1, 2, 3]}),
    (RandomWordClip, {"scales": 2.5}),
    (ClipAd, {"sigma": [1]}),
    (ClipAd, {"rvs_params": "eps"}),
    (AnomalyClip, {"layers": {"first": 1}}),
    (ZsClip, {"heads": 3}),
    (ZsClip, {"weights": {"sdp": "half"}}),
    (ZsClip, {"k_shot": 1.5}),
    (ZsClip, {"sensitivity": 1}),
]


@pytest.mark.parametrize(("model", "values"), CONFIGS, ids=[f"{next(iter(values))}" for _, values in CONFIGS])
def test_configuration_of_a_wrong_type_is_refused_by_name(model: type[AnomalibModule], values: dict[str, Any]) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalibModule, "model")
    path = f"{model.__module__}.{model.__name__}"
    parser.parse_object({"model": {"class_path": path, "init_args": {"backbone": "builtin"}}})
    with pytest.raises(jsonargparse.ArgumentError, match=next(iter(values))):
        parser.parse_object({"model": {"class_path": path, "init_args": values}})
