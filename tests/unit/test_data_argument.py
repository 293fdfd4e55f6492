"""``--data`` that is no data module: the command says so in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from anomalib.cli.cli import AnomalibCLI
from jsonargparse import ArgumentParser

from anomalib_zsclip import models
from anomalib_zsclip.data.data_argument import explain_wrong_data


def said(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    monkeypatch.setattr(ArgumentParser, "error", ArgumentParser.error)  # is put back afterwards
    monkeypatch.setattr("sys.argv", ["anomalib", *arguments])
    explain_wrong_data(models.__all__)
    with pytest.raises(SystemExit):
        AnomalibCLI(arguments, run=False)
    printed: Any = capsys.readouterr().err
    return printed[printed.index("error: ") :]


@pytest.mark.parametrize("kind", ["absent", "folder", "text", "pattern"])
@pytest.mark.parametrize("command", ["train", "test"])
def test_wrong_data_is_said_in_a_sentence(
    command: str, kind: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "notes.txt").write_text("no data")
    names = {"absent": "nowhere", "folder": ".", "text": "notes.txt", "pattern": "*.png"}
    path = str(tmp_path / names[kind])
    message = said([command, "--model", "ZsClip", "--data", path], monkeypatch, capsys)
    assert len(message.strip().splitlines()) == 1
    assert path in message
    assert "--data Folder" in message


def test_other_models_keep_the_words_of_the_parser(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert "Subtypes" in said(["train", "--model", "Padim", "--data", "nowhere"], monkeypatch, capsys)
