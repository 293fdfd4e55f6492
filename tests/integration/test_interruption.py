"""The text cache and the numbers survive kills, neighbours, damage and disks that cannot be written to."""

from __future__ import annotations

import json
import logging
import os
import random
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

TEXTS = ["a perfect part", "a damaged part", "a photo"]


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
def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A fresh process: a forked one could inherit the locks of torch's threads."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )


WRITE_FOR_EVER = """
import sys, torch
from pathlib import Path
from anomalib_zsclip.clip import text_cache
rows = int(sys.argv[2])
embeddings = torch.arange(rows * 64, dtype=torch.float32).view(rows, 64)
print("ready", flush=True)
while True:
    text_cache._write(Path(sys.argv[1]) / "text-0.safetensors", "key", embeddings)
"""


def test_kill_while_writing_leaves_the_whole_file_or_none(folder: Path) -> None:
    rows, rng, seen = 20_000, random.Random(0), 0
    workers = [start(WRITE_FOR_EVER, folder / str(number), rows) for number in range(4)]
    for number, worker in enumerate(workers):
        assert worker.stdout.readline().strip() == "ready"
        time.sleep(0.1 + 0.3 * rng.random())
        worker.kill()
        worker.wait(30)
        path = folder / str(number) / "text-0.safetensors"
        if path.is_file():
            seen += 1
            found = text_cache._read(path, "key", (rows, 64))
            assert found is not None
            assert float(found[-1, -1]) == rows * 64 - 1
    assert seen


EMBED_MANY = """
import random, sys, torch
from pathlib import Path
from anomalib_zsclip.clip import ClipBackbone
from anomalib_zsclip.clip.text_cache import embed_texts
texts = ["a perfect part", "a damaged part", "a photo"]
backbone = ClipBackbone.load("builtin")
wanted = embed_texts(backbone, texts, cache=False)
for _ in range(30):
    for path in list(Path(sys.argv[1]).glob("text-*.safetensors"))[: random.randrange(2)]:
        path.unlink(missing_ok=True)  # so that there is always something to write
    assert torch.allclose(embed_texts(backbone, texts), wanted, atol=1e-5)
"""


def test_two_processes_share_a_folder(folder: Path) -> None:
    workers = [start(EMBED_MANY, folder) for _ in range(2)]
    assert [worker.wait(300) for worker in workers] == [0, 0]
    assert all(path.name.startswith("text-") for path in folder.iterdir()), "no temporary file is left"


FILL_AND_WAIT = """
import sys, time, torch
from anomalib_zsclip.learning import TokenBatch, TokenCache
batch = TokenBatch({"tokens": torch.zeros(4, 1000, 100)}, torch.zeros(4, dtype=torch.int64))
cache = TokenCache([batch], images=4, budget=0, folder=sys.argv[1])
print(cache.is_on_disk, flush=True)
time.sleep(300)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes the file when its handle is closed.")
def test_killed_learning_leaves_no_tokens_behind(tmp_path: Path) -> None:
    worker = start(FILL_AND_WAIT, tmp_path)
    assert worker.stdout.readline().strip() == "True"
    worker.kill()
    worker.wait(30)
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
