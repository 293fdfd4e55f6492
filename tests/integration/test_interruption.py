"""The text cache and the numbers survive kills, neighbours, damage and disks that cannot be written to."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomalib_zsclip.clip import ClipBackbone, text_cache
from anomalib_zsclip.clip.text_cache import embed_texts
from anomalib_zsclip.learning import TokenBatch, TokenCache

TEXTS = ["a perfect part", "a damaged part", "a photo"]

processes = multiprocessing.get_context("fork" if sys.platform != "win32" else "spawn")
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="Processes are forked: a fresh one takes seconds.")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(text_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def plain(tiny: ClipBackbone) -> Tensor:
    return tiny.encode_text(TEXTS, normalize=True)


def count_encodings(tiny: ClipBackbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    encode = type(tiny).encode_text
    monkeypatch.setattr(
        type(tiny), "encode_text", lambda self, texts, **kw: (calls.append(len(texts)), encode(self, texts, **kw))[1]
    )
    return calls


def cache_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("text-*.safetensors"))


# ---------------------------------------------------------------------- damage
def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def change_value(path: Path) -> None:
    """A whole file of the right form, from somewhere else."""
    tensors = load_file(path)
    save_file({"embeddings": tensors["embeddings"].flip(0)}, path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "flipped bit in the header": lambda path: flip(path, 20),
    "flipped bit in the numbers": lambda path: flip(path, -3),
    "foreign numbers": change_value,
    "foreign form": lambda path: save_file({"embeddings": torch.ones(2, 2)}, path),
    "foreign name": lambda path: save_file({"other": torch.ones(2, 2)}, path),
    "foreign file": lambda path: path.write_bytes(os.urandom(1000)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_foreign_files_are_made_anew(
    tiny: ClipBackbone, plain: Tensor, folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_texts(tiny, TEXTS)
    (path,) = cache_files(folder)
    DAMAGES[damage](path)
    calls = count_encodings(tiny, monkeypatch)
    for _ in range(2):
        torch.testing.assert_close(embed_texts(tiny, TEXTS), plain)
    assert calls == [3], "damage is found, and mended for the next run"


def test_file_of_other_texts_under_this_name_is_not_taken(tiny: ClipBackbone, plain: Tensor, folder: Path) -> None:
    embed_texts(tiny, TEXTS)
    (own,) = cache_files(folder)
    embed_texts(tiny, ["other", "texts", "here"])
    (other,) = set(cache_files(folder)) - {own}
    other.replace(own)
    torch.testing.assert_close(embed_texts(tiny, TEXTS), plain)


# ---------------------------------------------------------------------- disks
def refuse(error: OSError) -> Callable[..., object]:
    def raising(*args: object, **kwargs: object) -> object:
        raise error

    return raising


@pytest.mark.parametrize("what", ["folder", "read-only", "full", "unreadable"])
def test_disks_that_refuse_cost_a_warning_alone(
    tiny: ClipBackbone,
    plain: Tensor,
    folder: Path,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if what == "folder":
        folder.write_text("a file in the place of the folder")
    elif what == "read-only":
        monkeypatch.setattr("tempfile.mkstemp", refuse(OSError(30, "Read-only file system")))
    elif what == "full":
        monkeypatch.setattr(text_cache, "save_file", refuse(OSError(28, "No space left on device")))
    else:
        embed_texts(tiny, TEXTS)
        monkeypatch.setattr(text_cache, "safe_open", refuse(PermissionError(13, "Permission denied")))
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(embed_texts(tiny, TEXTS), plain)
    assert len(caplog.records) == 1
    assert str(folder) in caplog.text
    assert not list(folder.glob(".text-*")) if folder.is_dir() else True


# ---------------------------------------------------------------------- kills and neighbours
def write_for_ever(folder: str, rows: int) -> None:
    os.environ[text_cache.CACHE_VARIABLE] = folder
    embeddings = torch.arange(rows * 64, dtype=torch.float32).view(rows, 64)
    while True:
        text_cache._write(Path(folder) / "text-0.safetensors", "key", embeddings)


@needs_fork
def test_kill_while_writing_leaves_the_whole_file_or_none(folder: Path) -> None:
    rows, rng, seen = 20_000, random.Random(0), 0
    for _ in range(6):
        process = processes.Process(target=write_for_ever, args=(str(folder), rows), daemon=True)
        process.start()
        time.sleep(0.05 + 0.15 * rng.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        path = folder / "text-0.safetensors"
        if path.is_file():
            seen += 1
            found = text_cache._read(path, "key", (rows, 64))
            assert found is not None
            assert float(found[-1, -1]) == rows * 64 - 1
    assert seen


def embed_many(tiny: ClipBackbone, folder: str, wanted: Tensor, failures: object) -> None:
    torch.set_num_threads(1)
    os.environ[text_cache.CACHE_VARIABLE] = folder
    for _ in range(10):
        for path in cache_files(Path(folder))[: random.randrange(2)]:
            path.unlink(missing_ok=True)  # so that there is always something to write
        if not torch.allclose(embed_texts(tiny, TEXTS), wanted, atol=1e-5):
            failures.put("other numbers")
    failures.put("done")


@needs_fork
def test_two_processes_share_a_folder(tiny: ClipBackbone, plain: Tensor, folder: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    failures = processes.SimpleQueue()
    workers = [
        processes.Process(target=embed_many, args=(tiny, str(folder), plain, failures), daemon=True) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    torch.set_num_threads(threads)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [failures.get() for _ in workers] == ["done", "done"]
    assert failures.empty()
    assert all(path.name.startswith("text-") for path in folder.iterdir()), "no temporary file is left"


def fill_and_wait(folder: str, filled: object) -> None:
    batch = TokenBatch({"tokens": torch.zeros(4, 1000, 100)}, torch.zeros(4, dtype=torch.int64))
    cache = TokenCache([batch], images=4, budget=0, folder=folder)
    filled.put(cache.is_on_disk)
    time.sleep(60)


@needs_fork
def test_killed_learning_leaves_no_tokens_behind(tmp_path: Path) -> None:
    filled = processes.SimpleQueue()
    process = processes.Process(target=fill_and_wait, args=(str(tmp_path), filled), daemon=True)
    process.start()
    assert filled.get()
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.rglob("*")) == []


# ---------------------------------------------------------------------- the same numbers in every process
SCRIPT = """
import hashlib, json, sys, torch
from anomalib_zsclip import AnomalyClip, ClipAd, RandomWordClip, ZsClip
torch.manual_seed(int(sys.argv[1]))  # the numbers come from the models' own seeds
images = torch.rand(2, 3, 96, 80, generator=torch.Generator().manual_seed(0))
few = {"prompts": sys.argv[2], "rvs": "mean", "text_cache": False}
words = {"prompts_per_class": 50, "text_cache": False}
models = {
    "RandomWordClip": RandomWordClip(backbone="builtin", **words),
    "windows": RandomWordClip(backbone="builtin", localization="window", **words),
    "other seed": RandomWordClip(backbone="builtin", seed=1, **words),
    "ClipAd": ClipAd(backbone="builtin", **few),
    "ZsClip": ZsClip(backbone="builtin", random_word=words, sdp=few),
}
digests = {}
for name, model in models.items():
    with torch.no_grad():
        result = model.eval()(images)
    values = torch.cat([result.pred_score.flatten(), result.anomaly_map.flatten()])
    digests[name] = hashlib.sha256(values.numpy().tobytes()).hexdigest()
print(json.dumps(digests))
"""


def test_same_seed_gives_the_same_numbers_in_every_process(tmp_path: Path) -> None:
    prompts = Path(__file__).parents[1] / "few_prompts.yaml"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(seed), str(prompts)],
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "PYTHONHASHSEED": str(seed)},
        )
        for seed in (1, 2)
    ]
    first, second = (json.loads(run.communicate(timeout=300)[0].splitlines()[-1]) for run in runs)
    assert first == second
    assert len(set(first.values())) == len(first)
