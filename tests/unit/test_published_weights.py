"""Published weights by name, against a server on this machine that serves, cuts, stalls, redirects and lies."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from anomalib_zsclip import AnomalyClip, ClipAd, ClipBackbone, ZsClip
from anomalib_zsclip.clip import downloads
from anomalib_zsclip.clip.downloads import git_blob_id, obtain
from anomalib_zsclip.clip.published import settings_of
from anomalib_zsclip.errors import ArgumentError, CheckpointError
from anomalib_zsclip.heads import published_weights
from anomalib_zsclip.heads.published_weights import TABLE, PublishedWeights, main, source_for, way_out, weights_of
from anomalib_zsclip.heads.sdp import SdpHead
from anomalib_zsclip.heads.sdp_plus import SdpPlusHead
from anomalib_zsclip.models.pretrained_heads import bring_published
from anomalib_zsclip.prompts.learned import PromptLearner
from tests.builtin_models import FEW_PROMPTS

FEW = {"prompts": FEW_PROMPTS, "rvs": "mean", "text_cache": False}


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path, in the ``manner`` that a test asks for."""

    daemon_threads = True
    manner = "serve"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.released = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server, manner = self.server, self.server.manner
        server.asked.append(self.path)
        content = server.files.get(self.path.removeprefix("/moved"))
        if manner == "error" or content is None:
            self.send_error(404 if content is None else 503)
            return
        if manner == "loop" or (manner == "redirect" and not self.path.startswith("/moved")):
            self.send_response(302)
            self.send_header("Location", self.path if manner == "loop" else f"/moved{self.path}")
            self.end_headers()
            return
        if manner == "file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
            return
        length = len(content)
        if manner == "page":
            content = b"<!DOCTYPE html><html><body>Please sign in</body></html>"
            length = len(content)
        if manner == "changed":
            content = content[:100] + bytes([content[100] ^ 1]) + content[101:]
        if manner == "endless":
            length = 10**9
        self.send_response(200)
        if manner != "cut without length":
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if manner in ("cut", "cut without length", "stall"):
            self.wfile.write(content[: length // 2])
            self.wfile.flush()
            if manner == "stall":
                server.released.wait(10)
            return
        if manner == "endless":
            try:
                while not server.released.is_set():
                    self.wfile.write(bytes(2**16))
            except OSError:
                pass
            return
        self.wfile.write(content)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.released.set()
    running.shutdown()
    running.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANOMALIB_ZSCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def table(server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, PublishedWeights]:
    """A table whose entries belong to the built-in backbone and whose files this machine serves."""
    backbone = ClipBackbone.load("builtin")
    entries = {}
    for seed, (head, source) in enumerate((h, s) for h in ("anomaly_clip", "sdp_plus") for s in ("mvtec", "visa")):
        torch.manual_seed(seed)
        path = tmp_path / f"{head}-{source}.pth"
        torch.save(official(head, backbone), path)
        entry = PublishedWeights(
            head, source, ("builtin", "builtin"), "owner/repository", "commit", path.name, git_blob_id(path), "MIT", "Us",
            path.stat().st_size if source == "mvtec" else None, server.address,
        )  # fmt: skip
        server.files[f"/owner/repository/commit/{path.name}"] = path.read_bytes()
        entries[entry.name] = entry
    monkeypatch.setattr(published_weights, "TABLE", tuple(entries.values()))
    return entries


def official(head: str, backbone: ClipBackbone) -> dict[str, Any]:
    """Random weights in the form in which the authors keep them."""
    if head == "sdp_plus":
        plus = SdpPlusHead(SdpHead(backbone, prompts=FEW_PROMPTS), backbone)
        return {"linear_layers": {f"fc.{key}": value for key, value in plus.fc.state_dict().items()}}
    prompts = PromptLearner(backbone.text_width, depth=backbone.text_layers)
    deep = {f"compound_prompts_text.{i}": value.data for i, value in enumerate(prompts.deep_prompts)}
    # Projections, which nothing uses, tell files of AnomalyCLIP from those of Crane.
    if head == "anomaly_clip":
        deep |= {f"compound_prompt_projections.{i}.weight": torch.zeros(1, 1) for i in range(len(prompts.deep_prompts))}
    return {"prompt_learner": {name: getattr(prompts, name).data[None, None] for name in ("ctx_pos", "ctx_neg")} | deep}


def nothing_half_written(cache: Path) -> bool:
    return not [path for path in cache.rglob("*") if path.is_file()]


class MVTecAD:
    """A data module as its name is all that counts."""


class Visa(MVTecAD):
    pass


class Folder:
    pass


def trainer_of(datamodule: object) -> Any:
    return SimpleNamespace(datamodule=datamodule)


# ---------------------------------------------------------------------- the table
def test_the_table_is_complete_and_pinned() -> None:
    assert {entry.name for entry in TABLE} == {
        f"{head}-{source}" for head in ("anomaly_clip", "sdp_plus", "crane") for source in ("mvtec", "visa")
    }
    for entry in TABLE:
        assert re.fullmatch("[0-9a-f]{40}", entry.commit)
        assert re.fullmatch("[0-9a-f]{40}", entry.blob)
        assert settings_of(*entry.backbone)
        assert entry.file.url == (f"https://raw.githubusercontent.com/{entry.repository}/{entry.commit}/{entry.path}")
    assert len({entry.blob for entry in TABLE}) == len(TABLE)
    # What the authors call "multiscale" without an ending was learned on VisA.
    by_name = {entry.name: entry for entry in TABLE}
    assert by_name["anomaly_clip-visa"].path == "checkpoints/9_12_4_multiscale/epoch_15.pth"


@pytest.mark.parametrize(
    ("choice", "target", "source"),
    [
        ("published", "mvtec", "visa"), ("published", "visa", "mvtec"), ("published", None, "mvtec"),
        ("published-mvtec", "mvtec", "mvtec"), ("published-visa", None, "visa"),
    ],
)  # fmt: skip
def test_weights_are_those_not_learned_on_the_target(choice: str, target: str | None, source: str) -> None:
    assert source_for(choice, target) == source


def test_a_blob_id_is_that_of_git(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello world\n")
    assert git_blob_id(tmp_path / "file") == "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"


# ---------------------------------------------------------------------- downloads
@pytest.mark.parametrize("manner", ["serve", "redirect"])
def test_a_file_is_downloaded_once(table: dict[str, PublishedWeights], server: Server, manner: str) -> None:
    server.manner = manner
    file = table["sdp_plus-visa"].file
    path = obtain(file)
    asked = len(server.asked)
    assert git_blob_id(path) == file.blob
    assert obtain(file) == path
    assert len(server.asked) == asked
    assert [child.name for child in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("manner", "message"),
    [
        ("cut", "cannot be downloaded"), ("cut without length", "another file"), ("changed", "another file of"),
        ("page", "a web page, perhaps of a proxy"), ("error", "answers 503"), ("loop", "cannot be downloaded"),
        ("file", "cannot be downloaded"), ("stall", "no answer within|timed out"), ("endless", "more than the expected"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["sdp_plus-mvtec", "anomaly_clip-visa"])
def test_everything_else_is_refused_and_nothing_stays(
    table: dict[str, PublishedWeights], server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch,
    manner: str, message: str, name: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(downloads, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(downloads, "LARGEST_BYTES", 2**20)
    server.manner = manner
    file = table[name].file
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=message) as raised:
        obtain(file)
    assert time.monotonic() - start < 5
    for part in (file.url, file.blob, str(file.path)):
        assert part in str(raised.value)
    assert nothing_half_written(cache)


def test_a_server_that_drips_is_given_up(
    table: dict[str, PublishedWeights], server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "LONGEST_SECONDS", -1.0)
    with pytest.raises(CheckpointError, match="not complete after"):
        obtain(table["anomaly_clip-visa"].file)
    assert nothing_half_written(cache)


def test_no_server(table: dict[str, PublishedWeights], server: Server, cache: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match=r"cannot be downloaded: .*refused"):
        obtain(table["anomaly_clip-visa"].file)


def test_off_line_nobody_is_asked(
    table: dict[str, PublishedWeights], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        obtain(table["anomaly_clip-visa"].file)
    assert not server.asked


def test_a_file_put_there_by_hand_is_checked(table: dict[str, PublishedWeights], server: Server) -> None:
    file = table["anomaly_clip-visa"].file
    file.path.parent.mkdir(parents=True)
    content = server.files[f"/owner/repository/commit/{table['anomaly_clip-visa'].path}"]
    file.path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="is not the published file"):
        obtain(file)
    file.path.write_bytes(content)
    assert obtain(file) == file.path
    assert not server.asked


@pytest.mark.parametrize("kind", ["full disk", "no folder"])
def test_a_cache_that_cannot_be_written_to(
    table: dict[str, PublishedWeights], cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "no folder":
        cache.write_text("a file where the folder should be")
    else:

        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(downloads.os, "fdopen", full)
    with pytest.raises(CheckpointError, match=r"cannot be written to.*ANOMALIB_ZSCLIP_CACHE"):
        obtain(table["anomaly_clip-visa"].file)
    assert cache.is_file() or nothing_half_written(cache)


# ---------------------------------------------------------------------- models
def make_model(name: str, **arguments: Any) -> Any:
    if name == "AnomalyClip":
        return AnomalyClip(**{"backbone": "builtin", "checkpoint": "published", **arguments})
    return ClipAd("sdp+", **FEW, **{"backbone": "builtin", "checkpoint": "published", **arguments})


@pytest.mark.parametrize("name", ["AnomalyClip", "ClipAd"])
def test_the_data_decide_which_weights_are_loaded(
    table: dict[str, PublishedWeights], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = make_model(name)
    head = next(iter(model.model.heads.values()))
    maps = {}
    for datamodule, source in ((MVTecAD(), "visa"), (Visa(), "mvtec"), (None, "mvtec"), (Folder(), "mvtec")):
        caplog.clear()
        bring_published(model, trainer_of(datamodule))
        model.prepare()
        assert list(model.bindings.published.values()) == [source]
        images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        maps.setdefault(source, model(images).anomaly_map)
        assert torch.equal(maps[source], model(images).anomaly_map)
        said = [record.getMessage() for record in caplog.records if "learned on" in record.getMessage()]
        assert len(said) == (source == "visa" or isinstance(datamodule, Visa))
    assert head.is_learned
    assert not torch.equal(*maps.values())
    bring_published(model, trainer_of(SimpleNamespace(target=MVTecAD())))  # as ZeroShotTransfer
    assert list(model.bindings.published.values()) == ["visa"]
    bring_published(model, trainer_of(None))
    assert list(model.bindings.published.values()) == ["visa"]


def test_a_choice_by_hand_stays_and_warns_once_where_it_is_not_zero_shot(
    table: dict[str, PublishedWeights], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("AnomalyClip", checkpoint="published-mvtec")
    for _ in range(3):
        bring_published(model, trainer_of(MVTecAD()))
    assert model.bindings.published == {"anomaly_clip": "mvtec"}
    assert sum("not zero-shot" in record.getMessage() for record in caplog.records) == 1


def test_other_weights_make_thresholds_anew(table: dict[str, PublishedWeights]) -> None:
    model = make_model("AnomalyClip")
    settings = []
    for datamodule in (MVTecAD(), Visa()):
        bring_published(model, trainer_of(datamodule))
        model.prepare()
        from anomalib_zsclip.models.readiness import _settings

        settings.append(_settings(model))
    assert settings[0] != settings[1]


def test_a_checkpoint_needs_no_published_file(
    table: dict[str, PublishedWeights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anomalib.engine import Engine

    model = make_model("AnomalyClip", checkpoint=None, visualizer=False)  # the default, which comes to "published"
    bring_published(model, trainer_of(MVTecAD()))
    model.prepare()
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    engine._setup_trainer(model)
    engine.trainer.strategy.connect(model)
    engine.trainer.save_checkpoint(tmp_path / "model.ckpt")
    monkeypatch.setenv("ANOMALIB_ZSCLIP_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = AnomalyClip.load_from_checkpoint(tmp_path / "model.ckpt", map_location="cpu").eval()
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(images).anomaly_map, model.eval()(images).anomaly_map)
    assert loaded.bindings.published == {"anomaly_clip": "visa"}


def test_heads_join_where_their_published_weights_fit(
    table: dict[str, PublishedWeights], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("anomalib_zsclip.models.zs_clip._shipped", lambda *_: None)
    arguments = {"backbone": "builtin", "random_word": {"prompts_per_class": 20, "text_cache": False}, "sdp": FEW}
    model = ZsClip(**arguments)
    assert set(model.model.heads) == {"random_word", "sdp", "sdp_plus", "anomaly_clip"}
    model.prepare()
    assert model.bindings.published == {"sdp_plus": "mvtec", "anomaly_clip": "mvtec"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("ANOMALIB_ZSCLIP_CACHE", "/nonexistent/folder")
    assert set(ZsClip(**arguments).model.heads) == {"random_word", "sdp"}
    assert "'sdp_plus' is left out" in caplog.text
    with pytest.raises(CheckpointError, match=r"http://127\.0\.0\.1"):
        ZsClip(heads=["sdp_plus"], **arguments)


def test_published_is_the_default_where_it_fits(
    table: dict[str, PublishedWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert AnomalyClip(backbone="builtin").published == {"anomaly_clip": "published"}
    assert AnomalyClip(backbone="builtin", learn=True).published == {}


def test_off_line_the_error_names_address_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real table: the one file of weights is that of another model, which is found out later."""
    monkeypatch.setenv("ANOMALIB_ZSCLIP_CACHE", str(tmp_path))
    backbone = SimpleNamespace(name="ViT-L-14-336", pretrained="openai")
    from anomalib_zsclip.models.pretrained_heads import take_published

    with pytest.raises(CheckpointError) as raised:
        take_published("anomaly_clip", "published", backbone)  # type: ignore[arg-type]
    for entry in TABLE[:2]:
        for part in (entry.file.url, entry.blob, str(entry.file.path)):
            assert part in str(raised.value)


def test_mistakes_are_named(table: dict[str, PublishedWeights], cache: Path) -> None:
    with pytest.raises(ArgumentError, match=r"Near matches: .*published-visa"):
        make_model("AnomalyClip", checkpoint="published-vsia")
    with pytest.raises(ArgumentError, match="learn=True needs to know"):
        make_model("AnomalyClip", learn=True)
    assert nothing_half_written(cache)


def test_another_backbone_is_told_which_one_they_belong_to(cache: Path) -> None:
    for name in ("AnomalyClip", "ClipAd"):
        with pytest.raises(ArgumentError, match=r"belong to the backbone 'ViT-.*this one is 'builtin'"):
            make_model(name)
    assert nothing_half_written(cache)


def test_a_file_of_another_architecture_is_refused(
    table: dict[str, PublishedWeights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"prompt_learner": {name: torch.zeros(1, 1, 12, 7) for name in ("ctx_pos", "ctx_neg")}}, tmp_path / "x")
    entry = table["anomaly_clip-mvtec"]._replace(blob=git_blob_id(tmp_path / "x"))
    monkeypatch.setattr(published_weights, "TABLE", (entry,))
    entry.file.path.parent.mkdir(parents=True)
    entry.file.path.write_bytes((tmp_path / "x").read_bytes())
    with pytest.raises(CheckpointError, match="text_width=7"):
        make_model("AnomalyClip", checkpoint="published-mvtec").prepare()


# ---------------------------------------------------------------------- the command
def test_the_command_lists_and_downloads(
    table: dict[str, PublishedWeights], capsys: pytest.CaptureFixture, server: Server
) -> None:
    main([])
    listed = capsys.readouterr().out
    for entry in table.values():
        assert all(part in listed for part in (entry.name, entry.file.url, entry.blob, entry.licence))
    assert listed.count("not in the cache") == 4
    main(["--download", "sdp_plus-visa"])
    assert capsys.readouterr().out.strip() == str(table["sdp_plus-visa"].file.path)
    main([])
    assert capsys.readouterr().out.count("not in the cache") == 3
    with pytest.raises(SystemExit) as ended:
        main(["--download", "sdp_plus-vsia"])
    assert ended.value.code == 1
    assert "sdp_plus-visa" in capsys.readouterr().err
    server.manner = "error"
    with pytest.raises(SystemExit):
        main(["--download"])
    assert "answers 503" in capsys.readouterr().err


def test_the_command_is_found_by_its_name() -> None:
    import importlib

    assert importlib.import_module("anomalib_zsclip.weights").main is main


@pytest.mark.parametrize("head", ["anomaly_clip", "crane", "sdp_plus"])
@pytest.mark.parametrize("fits", [True, False])
def test_the_way_out_names_another_clip_only_where_it_has_to(head: str, fits: bool) -> None:
    name, tag = weights_of(head, "mvtec").backbone
    backbone: Any = SimpleNamespace(name=name if fits else "ViT-B-32", pretrained=tag)
    text = way_out(head, backbone, "crane_checkpoint")
    assert "crane_checkpoint='published'" in text
    assert (f"backbone={name!r}, pretrained={tag!r}" in text) is not fits


@pytest.mark.parametrize("model", [ClipAd, AnomalyClip])
def test_missing_weights_of_a_head_mention_the_published_ones(model: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomalib_zsclip.models.clip_ad.shipped_head", lambda *_args: None)
    monkeypatch.setattr("anomalib_zsclip.heads.crane.BUILTIN_PROMPTS", Path("absent"))
    variant = {ClipAd: "sdp+", AnomalyClip: "crane"}[model]
    with pytest.raises((CheckpointError, ArgumentError), match=r"no learned .*backbone='ViT-.*checkpoint='published'"):
        model(backbone="builtin", variant=variant, **(FEW if model is ClipAd else {})).prepare()
