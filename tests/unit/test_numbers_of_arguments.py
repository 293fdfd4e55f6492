"""Numbers that users give are of the right kind, or the error names argument and value."""

from __future__ import annotations

import numpy as np
import pytest

from anomalib_zsclip.errors import ArgumentError, check_share, check_whole_number
from anomalib_zsclip.heads.anomaly_clip import AnomalyClipOptions
from anomalib_zsclip.heads.crane import CraneOptions
from anomalib_zsclip.heads.memory_bank import MemoryBank, PublishedBank
from anomalib_zsclip.heads.mutual_scoring import MutualScoring
from anomalib_zsclip.heads.random_word import RandomWordOptions
from anomalib_zsclip.images.tiling import Tiling
from anomalib_zsclip.models import MuSc, ZsClip
from anomalib_zsclip.models.views import Views

NO_SHARES = (-0.1, 1.1, float("nan"), "a", True, (0.5,))
NO_COUNTS = (1.5, -1, "2", True, float("nan"), (3,))


@pytest.mark.parametrize("value", NO_SHARES)
def test_shares(value: object) -> None:
    for name in ("map_share", "memory_share"):
        with pytest.raises(ArgumentError, match=f"{name}=.* must be a number between 0 and 1"):
            ZsClip(backbone="builtin", heads=["sdp"], explain=False, **{name: value})
    for make, name in (
        (lambda: Views(tile_share=value), "tile_share"),
        (lambda: MutualScoring(value), "mutual_share"),
        (lambda: CraneOptions(pooled_share=value), "pooled_share"),
    ):
        with pytest.raises(ArgumentError, match=f"{name}=.* must be a number between 0 and 1"):
            make()


@pytest.mark.parametrize("value", NO_COUNTS)
def test_counts(value: object) -> None:
    for name in ("k_shot", "normal_images"):
        with pytest.raises(ArgumentError, match=f"{name}=.* must be a whole number of at least"):
            ZsClip(backbone="builtin", heads=["sdp"], explain=False, **{name: value})
    options = [(RandomWordOptions, name) for name in ("hidden", "stride", "window_chunk")]
    options += [(AnomalyClipOptions, name) for name in ("n_ctx", "depth", "t_n_ctx", "value_value_blocks")]
    options += [(CraneOptions, "self_correlation_blocks"), (Views, "view_chunk"), (Tiling, "max_tiles")]
    for cls, name in options:
        with pytest.raises(ArgumentError, match=f"{name}=.* must be a whole number of at least"):
            cls(**{name: value})
    with pytest.raises(ArgumentError, match=r"windows.* must be a whole number of at least 1"):
        MutualScoring(windows=(value,))


@pytest.mark.parametrize("value", [3, (), (2,), (0,), (1.0,), ("3",)])
def test_sides_of_windows(value: object) -> None:
    for make in (MemoryBank, PublishedBank):
        with pytest.raises(ArgumentError, match="degrees of MuSc"):
            make(scales=value)
    with pytest.raises(ArgumentError, match="degrees of MuSc"):
        MuSc(backbone="builtin", degrees=value)


def test_what_fits_passes() -> None:
    for share in (0, 1, 0.5, np.float32(0.25)):
        check_share("share", share)
    for count in (0, 3, np.int64(7)):
        check_whole_number("count", count, 0)
    with pytest.raises(ArgumentError, match=r"count=0 must be a whole number of at least 1\."):
        check_whole_number("count", 0, 1)
