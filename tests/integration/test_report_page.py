"""The report in a real browser: what a person sees and does, checked against the table and scikit-learn."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support, roc_auc_score

from anomalib_zsclip.outputs import MonotonePostProcessor
from anomalib_zsclip.outputs.report.page import render
from tests.report_runs import (
    make_batch,
    make_module,
    random_scores,
    read_page,
    read_table,
    run_callbacks,
    save_pictures,
)

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install '.[test]'")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

COUNT = 300
WORDS = ("hole (0.61), cut (0.10)", "scratch (0.44), hole (0.22)", "missing part (0.52)")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program, driver = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("No Chromium with its driver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    try:
        found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    except Exception as error:
        pytest.skip(f"Chromium does not start here: {str(error).splitlines()[0]}")
    found.set_window_size(1300, 1000)
    yield found
    found.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 300 labelled pictures in three folders, and two that could not be judged."""
    root = tmp_path_factory.mktemp("report")
    names = [f"line{index % 3}/part {index:03d} <b>'ü.png" for index in range(COUNT)]
    scores, labels = random_scores(COUNT)
    names += ["line0/broken.png", "line1/broken.png"]
    scores, labels = [*scores, float("nan"), float("nan")], [*labels, 0, 1]
    paths = save_pictures(root / "in", names)
    words = [WORDS[index % 3] for index in range(len(names))]
    post_processor = MonotonePostProcessor()
    good = torch.tensor([score for score, label in zip(scores, labels, strict=True) if not label][:25])
    post_processor.decide_from_normal(good, good)
    batches = [
        make_batch(paths[at : at + 50], scores[at : at + 50], labels[at : at + 50], words[at : at + 50])
        for at in range(0, len(names), 50)
    ]
    run_callbacks(root / "out", batches, module=make_module(post_processor=post_processor))
    return root / "out"


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    browser.get((folder / "report.html").as_uri())
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def text(page: Any, name: str) -> str:
    return page.find_element(By.ID, name).text


def wait(page: Any, condition: Callable[[], bool]) -> None:
    WebDriverWait(page, 10, poll_frequency=0.02).until(lambda _: condition())


def choose(page: Any, name: str, value: str) -> None:
    Select(page.find_element(By.ID, name)).select_by_value(value)


def judged(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the table, and the truth."""
    scores = np.array([float(row["pred_score"]) for row in read_table(folder)])
    truth = np.array([row["truth"] for row in read_page(folder)["rows"]])
    return scores[np.isfinite(scores)], truth[np.isfinite(scores)]


def assert_counts(page: Any, folder: Path, threshold: float) -> None:
    scores, truth = judged(folder)
    flagged = scores > threshold
    (_, alarms), (misses, _) = confusion_matrix(truth, flagged)
    precision, recall, f1, _ = precision_recall_fscore_support(truth, flagged, average="binary", zero_division=0)
    names = ("flagged", "misses", "alarms", "precision", "recall", "f1")
    assert {name: text(page, f"c-{name}") for name in names} == {
        "flagged": str(flagged.sum()), "misses": str(misses), "alarms": str(alarms),
        "precision": f"{precision:.3f}", "recall": f"{recall:.3f}", "f1": f"{f1:.3f}",
    }  # fmt: skip
    assert text(page, "command") == f"--model.threshold {threshold:g}"


def test_the_counts_are_those_of_the_table_at_any_threshold(page: Any, folder: Path) -> None:
    assert_counts(page, folder, 0.5)
    field = page.find_element(By.ID, "threshold")
    for threshold in (0.31, 0.6275, 0.99, 0):
        field.send_keys(Keys.CONTROL, "a", Keys.NULL, str(threshold))
        assert_counts(page, folder, threshold)


def test_a_score_at_the_threshold_does_not_exceed_it(page: Any, folder: Path) -> None:
    scores = np.array([row["score"] for row in read_page(folder)["rows"] if row["score"] is not None])
    at = sorted(scores)[200]
    page.find_element(By.ID, "threshold").send_keys(Keys.CONTROL, "a", Keys.NULL, repr(float(at)))
    assert int(text(page, "c-flagged")) == (scores.astype(np.float32) > np.float32(at)).sum()
    assert (scores == at).any()


def test_the_line_follows_the_mouse_and_the_keys(page: Any, folder: Path) -> None:
    line = page.find_element(By.ID, "line")
    ActionChains(page).drag_and_drop_by_offset(line, 120, 0).perform()
    moved = float(line.get_attribute("aria-valuenow"))
    assert 0.55 < moved < 0.9
    assert_counts(page, folder, moved)
    line.send_keys(Keys.ARROW_LEFT)
    assert_counts(page, folder, round(moved - 0.01, 4))
    line.send_keys(Keys.SHIFT, Keys.ARROW_RIGHT)
    assert_counts(page, folder, round(moved - 0.009, 4))
    page.find_element(By.ID, "reset").click()
    assert_counts(page, folder, 0.5)


def test_best_f1_is_the_best(page: Any, folder: Path) -> None:
    page.find_element(By.ID, "best").click()
    scores, truth = judged(folder)
    best = max(
        precision_recall_fscore_support(truth, scores >= score, average="binary", zero_division=0)[2]
        for score in scores
    )
    assert float(text(page, "c-f1")) == pytest.approx(best, abs=5e-4)


def test_filters_find_what_the_table_has(page: Any, folder: Path) -> None:
    rows = read_page(folder)["rows"]

    def found() -> int:
        return int(text(page, "found").split()[0])

    assert found() == len(rows)
    wanted = {
        ("f-decision", "flagged"): sum(row["flagged"] == 1 for row in rows),
        ("f-decision", "normal"): sum(row["flagged"] == 0 for row in rows),
        ("f-decision", "broken"): 2,
        ("f-truth", "misses"): sum(row["flagged"] == 0 and row["truth"] == 1 for row in rows),
        ("f-truth", "alarms"): sum(row["flagged"] == 1 and row["truth"] == 0 for row in rows),
        ("f-folder", "=line1"): 101,
        ("f-word", "=missing part"): 100,
    }
    for (name, value), count in wanted.items():
        choose(page, name, value)
        assert found() == count, (name, value)
        choose(page, name, "all")
    choose(page, "f-folder", "=line1")
    page.find_element(By.ID, "f-text").send_keys("PART 12")
    assert found() == sum("part 12" in row["path"] and row["path"].startswith("line1") for row in rows)
    cards = page.find_elements(By.CSS_SELECTOR, ".card .name")
    assert all("part 12" in card.text and "<b>'ü.png" in card.text for card in cards)


def test_decisions_on_the_cards_follow_the_threshold(page: Any, folder: Path) -> None:
    choose(page, "f-decision", "flagged")
    before = text(page, "found")
    page.find_element(By.ID, "line").send_keys(Keys.PAGE_UP)
    wait(page, lambda: text(page, "found") != before)
    assert text(page, "found").split()[0] == text(page, "c-flagged")
    choose(page, "f-decision", "all")
    choose(page, "f-sort", "low")
    first = page.find_element(By.CSS_SELECTOR, ".card")
    assert "normal" in first.get_attribute("class")
    page.find_element(By.ID, "threshold").send_keys(Keys.CONTROL, "a", Keys.NULL, "0")
    assert "flagged" in first.get_attribute("class")


def test_a_picture_opens_large_with_its_regions_and_arrows_go_on(page: Any, folder: Path) -> None:
    rows = sorted((row for row in read_page(folder)["rows"] if row["score"] is not None), key=lambda row: -row["score"])
    page.find_element(By.CSS_SELECTOR, ".card").click()
    dialog = page.find_element(By.ID, "large")
    assert text(page, "large-name") == Path(rows[0]["path"]).name
    wait(
        page, lambda: page.execute_script("return [...document.querySelectorAll('#large img')].every(i => i.complete)")
    )
    widths = page.execute_script("return [...document.querySelectorAll('#large img')].map(i => i.naturalWidth)")
    assert widths == [3 * 48] * 3
    shown = page.execute_script("return [...document.querySelectorAll('#large img')].map(i => i.style.left)")
    assert shown == ["0%", "-100%", "-200%"], "image, map and mask are windows on the one strip"
    assert "0, 0" in text(page, "large-facts")
    assert len(dialog.find_elements(By.CSS_SELECTOR, ".box")) == 2
    dialog.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert text(page, "large-place") == f"3 of {COUNT + 2}"
    dialog.send_keys(Keys.ARROW_LEFT)
    assert text(page, "large-place").startswith("2 of")
    dialog.send_keys(Keys.END)
    assert "broken.png" in text(page, "large-name")
    dialog.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()


def test_numbers_and_good_parts_are_those_of_the_libraries(page: Any, folder: Path) -> None:
    scores, truth = judged(folder)
    page.find_element(By.ID, "tab-numbers").click()
    shown = text(page, "numbers")
    assert f"ROC, area {roc_auc_score(truth, scores):.3f}" in shown
    assert f"average precision {average_precision_score(truth, scores):.3f}" in shown
    page.find_element(By.ID, "tab-good").click()
    assert len(page.find_elements(By.CSS_SELECTOR, "#good tbody tr")) == 7
    page.find_element(By.CSS_SELECTOR, "#good tbody tr button").click()
    good = read_page(folder)["run"]["good"]
    assert f"{good['choices'][0]['exceeding']} would be flagged" in text(page, "expected")
    page.find_element(By.ID, "tab-run").click()
    assert "good parts" in text(page, "run")


@pytest.mark.parametrize("width", [390, 1300])
def test_nothing_sticks_out_of_the_screen(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    try:
        for tab in ("numbers", "good", "run", "pictures"):
            page.find_element(By.ID, f"tab-{tab}").click()
            assert page.execute_script("return document.documentElement.scrollWidth") <= width, tab
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_and_dark(page: Any) -> None:
    def background() -> str:
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    found = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        found.append(background())
    page.find_element(By.ID, "theme").click()
    found.append(background())
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert found[0] == found[2] != found[1]


def test_twenty_thousand_pictures_open_and_filter_at_once(browser: Any, folder: Path, tmp_path: Path) -> None:
    content = read_page(folder)
    content["rows"] = [
        content["rows"][index % COUNT] | {"path": f"folder{index % 50}/{index}.png", "score": index * 7919 % 20_000 / 20_000}
        for index in range(20_000)
    ]  # fmt: skip
    content["run"]["complete"] = False
    (tmp_path / "report.html").write_text(render(content), encoding="utf-8")
    start = time.perf_counter()
    browser.get((tmp_path / "report.html").as_uri())
    assert text(browser, "found") == "20000 pictures"
    assert time.perf_counter() - start < 10 * float(os.environ.get("SLOW_MACHINE", "1"))
    assert "interrupted" in text(browser, "notices")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".card")) < 100, "only what is on the screen exists"
    choose(browser, "f-folder", "=folder7")
    assert text(browser, "found").startswith("400 of 20000")
    choose(browser, "f-folder", "all")
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    last = "[...document.querySelectorAll('.cell')].at(-1).ariaPosInSet"
    wait(browser, lambda: browser.execute_script(f"return {last}") == "20000")
