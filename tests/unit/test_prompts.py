"""Prompt ensembles and representative vectors."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from anomalib_zsclip.errors import ArgumentError
from anomalib_zsclip.prompts import DOMAINS, RVS_DEFAULTS, representative_vector, state_sentences

ENSEMBLE = """
normal: ["good {}"]
anomalous: ["bad {}", "{} with dent"]
templates: ["a photo of a {}.", "the {}"]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "prompts.yaml"
    path.write_text(text)
    return path


def test_the_industrial_ensemble_is_the_papers() -> None:
    normal, anomalous = state_sentences("metal_nut")

    assert (len(normal), len(anomalous)) == (9 * 22, 10 * 22)
    assert normal[0] == "a cropped photo of the flawless metal_nut."
    assert anomalous[-1] == "a photo of a metal_nut with contamination for anomaly detection."


def test_the_medical_ensemble_speaks_of_health() -> None:
    normal, anomalous = state_sentences("brain", domain="medical")

    assert "a medical image of the healthy brain." in normal
    assert "a medical image of the diseased brain." in anomalous


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_sentence_occurs_twice_and_each_names_the_object(domain: str) -> None:
    sentences = [sentence for state in state_sentences("xylophone", domain) for sentence in state]

    assert len(set(sentences)) == len(sentences)
    assert all(sentence.count("xylophone") == 1 and "{" not in sentence for sentence in sentences)


def test_own_lists_take_the_place_of_the_domain(tmp_path: Path) -> None:
    normal, anomalous = state_sentences("tile", prompts=write(tmp_path, ENSEMBLE))

    assert normal == ["a photo of a good tile.", "the good tile"]
    assert anomalous == [
        "a photo of a bad tile.",
        "the bad tile",
        "a photo of a tile with dent.",
        "the tile with dent",
    ]


def test_braces_in_a_class_name_are_text() -> None:
    assert "a photo of the flawless {0.x}." in state_sentences("{0.x}")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENSEMBLE.replace('["good {}"]', "[]"), "'normal' must be a list with at least one entry"),
        (ENSEMBLE.replace("bad {}", "bad"), "'bad' of 'anomalous' has no '{}' where the object belongs"),
        (ENSEMBLE.replace('"the {}"', "the {}"), "quotation marks"),
        (ENSEMBLE.replace('"the {}"', "7"), "7 of 'templates'"),
        (ENSEMBLE.replace("anomalous", "abnormal"), "normal, anomalous, templates; it holds: normal, abnormal"),
        ("normal: [", "cannot be read as a YAML file (are"),
        ("", "it holds: NoneType"),
        ("!!python/object/apply:os.getcwd []", "cannot be read as a YAML file (are"),
    ],
)
def test_a_wrong_file_is_refused_with_its_fault(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        state_sentences("tile", prompts=write(tmp_path, text))
    assert message in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"absent\.yaml"):
        state_sentences("tile", prompts=tmp_path / "absent.yaml")


def test_an_unknown_domain_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ArgumentError, match="domain='dental' must be one of industrial, medical"):
        state_sentences("tooth", domain="dental")


def rows_of(*groups: tuple[int, int, float], dimensions: int = 6) -> torch.Tensor:
    """Unit vectors: groups of (axis, members, scatter)."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.eye(dimensions)[axis] + scatter * torch.randn(members, dimensions, generator=generator)
        for axis, members, scatter in groups
    ]
    return normalize(torch.cat(parts), dim=-1)


@pytest.mark.parametrize("method", RVS_DEFAULTS)
def test_every_method_gives_a_unit_vector_near_the_bulk(method: str) -> None:
    vector = representative_vector(rows_of((0, 30, 0.05), (3, 4, 0.05)), method)

    assert vector.norm() == pytest.approx(1, abs=1e-6)
    assert vector[0] > 0.9


def test_mean_is_the_normalised_mean() -> None:
    torch.testing.assert_close(representative_vector(torch.eye(2), "mean"), torch.full((2,), 0.5**0.5))


def test_pca_is_the_first_eigenvector_of_the_centred_rows() -> None:
    rows = rows_of((0, 20, 0.3), (3, 10, 0.3))
    centred = rows - rows.mean(dim=1, keepdim=True)
    _, vectors = torch.linalg.eigh(centred @ centred.T)
    expected = normalize(centred.T @ vectors[:, -1], dim=0)
    expected = expected * torch.sign(expected @ rows.mean(dim=0))

    torch.testing.assert_close(representative_vector(rows, "pca"), expected, atol=1e-5, rtol=0)


def test_kde_weighs_by_density() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    far = 2.718281828 ** (-2 / (2 * 0.3**2))  # The squared distance of the two directions is 2.
    dense, lonely = 2 + far, 1 + 2 * far
    expected = normalize(torch.tensor([2 * dense, lonely]), dim=0)

    torch.testing.assert_close(representative_vector(rows, "kde"), expected, atol=1e-6, rtol=0)


def test_dbscan_is_the_mean_of_the_largest_cluster() -> None:
    rows = rows_of((0, 16, 0.02), (3, 20, 0.02), (5, 3, 0.02))

    expected = normalize(rows[16:36].mean(dim=0), dim=0)
    torch.testing.assert_close(representative_vector(rows, "dbscan"), expected)


def test_of_two_largest_clusters_the_first_one_counts() -> None:
    rows = rows_of((3, 16, 0.02), (0, 16, 0.02))

    assert representative_vector(rows, "dbscan")[3] > 0.9


def test_without_a_cluster_the_mean_takes_its_place_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    rows = torch.eye(6)
    with caplog.at_level(logging.WARNING):
        vector = representative_vector(rows, "dbscan", min_samples=3)

    torch.testing.assert_close(vector, representative_vector(rows, "mean"))
    assert len(caplog.records) == 1
    assert "eps=0.5, min_samples=3" in caplog.text


def test_mean_shift_separates_clusters_where_its_bandwidth_is_small() -> None:
    rows = rows_of((0, 8, 0.02), (3, 5, 0.02))

    expected = normalize(rows[:8].mean(dim=0), dim=0)
    torch.testing.assert_close(representative_vector(rows, "mean_shift", bandwidth=0.5), expected)
    torch.testing.assert_close(representative_vector(rows, "mean_shift"), representative_vector(rows, "mean"))


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("median", {}, "rvs='median' must be one of mean, pca, kde, dbscan, mean_shift"),
        ("mean", {"eps": 1.0}, "rvs='mean' has no parameter 'eps'; its parameters: none"),
        ("dbscan", {"bandwidth": 1.0}, "its parameters: eps, min_samples"),
        ("dbscan", {"eps": 0.0}, "eps=0.0 of rvs='dbscan' must be positive; the paper's value is 0.5"),
        ("kde", {"bandwidth": float("nan")}, "bandwidth=nan"),
    ],
)
def test_a_wrong_method_or_parameter_is_refused(method: str, parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        representative_vector(torch.eye(3), method, **parameters)
    assert message in str(error.value)


def test_no_embeddings_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"\[n, E\]"):
        representative_vector(torch.empty(0, 4))
