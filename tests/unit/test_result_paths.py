"""Places of pictures and maps: one for each image of a run, the same for everybody who asks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from torch.utils.data import ConcatDataset, Subset

from anomalib_zsclip.outputs.paths import ResultPaths


class Files:
    """A data set that names its files, as anomalib's for a prediction."""

    def __init__(self, *names: str) -> None:
        self.image_filenames = [Path(name) for name in names]

    def __len__(self) -> int:
        return len(self.image_filenames)


NESTED = ("/data/line1/camA/001.png", "/data/line2/camA/001.png", "/data/line2/camB/001.png")


def trainer_of(*datasets: object, **attributes: object) -> SimpleNamespace:
    loaders = [SimpleNamespace(dataset=dataset) for dataset in datasets]
    return SimpleNamespace(default_root_dir="/results", predicting=True, predict_dataloaders=loaders, **attributes)


@pytest.mark.parametrize(
    "trainer",
    [
        trainer_of(Files(*NESTED)),
        trainer_of(*map(Files, NESTED)),
        trainer_of(ConcatDataset([Files(*NESTED[:2]), Files(NESTED[2])])),
        trainer_of(Subset(Files("/elsewhere/0.png", *NESTED), [1, 2, 3])),
        SimpleNamespace(
            default_root_dir="/results",
            test_dataloaders=SimpleNamespace(dataset=SimpleNamespace(samples=pd.DataFrame({"image_path": NESTED}))),
            predict_dataloaders=SimpleNamespace(dataset=Files("/of/a/run/before.png")),
        ),
    ],
    ids=["folder", "several loaders", "joined", "part", "data module"],
)
def test_the_structure_below_the_common_folder_is_kept(trainer: SimpleNamespace) -> None:
    paths = ResultPaths.of(trainer)
    pictures = [str(paths.picture(name)) for name in NESTED]
    assert pictures == [f"/results/images/{name.removeprefix('/data/')}" for name in NESTED]
    assert str(paths.anomaly_map(NESTED[1])) == "/results/anomaly_maps/line2/camA/001.tiff"


def test_the_root_of_the_data_module_goes_first_where_all_images_lie_below_it() -> None:
    files = Files("/data/MVTecAD/bottle/test/good/000.png", "/data/MVTecAD/bottle/test/hole/000.png")
    inside = ResultPaths.of(trainer_of(files, datamodule=SimpleNamespace(root="/data/MVTecAD")))
    assert inside.below(files.image_filenames[1]).as_posix() == "bottle/test/hole/000.png"
    outside = ResultPaths.of(trainer_of(files, datamodule=SimpleNamespace(root="/data/Visa")))
    assert outside.below(files.image_filenames[1]).as_posix() == "hole/000.png"


def test_no_two_images_share_a_place_and_the_order_of_asking_does_not_matter() -> None:
    names = ["/d/x.tif", "/d/x.png", "/d/x.jpg", "/d/x.tif.png", "/d/x.TIFF", "/d/x.tif.tif"]
    answers = []
    for order in (names, names[::-1]):
        paths = ResultPaths.of(trainer_of(Files(*names)))
        answers.append({name: (paths.picture(name), paths.anomaly_map(name)) for name in order})
    assert answers[0] == answers[1]
    pictures, maps = zip(*answers[0].values(), strict=True)
    assert len(set(pictures)) == len(set(maps)) == len(names)
    assert [answers[0][name][0].name for name in names[1:4]] == ["x.png", "x.jpg", "x.tif.png"], "these names stay"
    assert all(path.suffix in (".png", ".jpg") for path in pictures)
    assert all(path.suffix == ".tiff" for path in maps)


def test_images_that_nobody_knew_of_have_a_place_too() -> None:
    paths = ResultPaths.of(trainer_of(object()))
    places = [paths.picture(name) for name in ("/a/b/1.png", "/c/b/1.png", "/d/b/1.png", None, None)]
    assert len(set(places)) == 5
    assert paths.picture("/c/b/1.png") == places[1]
