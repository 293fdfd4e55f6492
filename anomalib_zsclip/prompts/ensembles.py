"""Prompt ensembles: state phrases times templates (CLIP-AD, arXiv 2311.00453, after WinCLIP)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml

from anomalib_zsclip.errors import ArgumentError

DOMAINS = ("industrial", "medical")
KEYS = ("normal", "anomalous", "templates")
PLACE = "{}"
MOST_SENTENCES = 100_000
"""More would take hours of the text tower; the paper's ensemble makes 418."""

Ensemble = dict[str, list[str]]


def state_sentences(
    class_name: str, domain: str = "industrial", prompts: str | Path | None = None
) -> tuple[list[str], list[str]]:
    """Sentences that describe a normal and an anomalous object.

    Args:
        class_name: Name of the object, put into the sentences as it is (the published numbers keep the underscore of
            ``metal_nut``).
        domain: ``"industrial"`` for the ensemble of the paper (9 normal and 10 anomalous states, 22 templates) or
            ``"medical"`` for one with the words of that field.
        prompts: YAML file with an ensemble of one's own, which takes the place of ``domain``'s: the lists ``normal``
            and ``anomalous`` of states and the list ``templates``, each entry with ``{}`` where the object or the
            state belongs.

    Returns:
        The normal and the anomalous sentences; states in the outer loop, templates in the inner one.

    Raises:
        ArgumentError: If the domain is unknown, or the file cannot be read or has another form.
    """
    if domain not in DOMAINS:
        msg = f"domain={domain!r} must be one of {', '.join(DOMAINS)}; for your own lists give prompts=<YAML file>."
        raise ArgumentError(msg)
    ensemble = _built_in(domain) if prompts is None else read_ensemble(prompts)
    count = (len(ensemble["normal"]) + len(ensemble["anomalous"])) * len(ensemble["templates"])
    if count > MOST_SENTENCES:
        msg = (
            f"prompts={str(prompts)!r} makes {count} sentences of states and templates; {MOST_SENTENCES} are the most."
        )
        raise ArgumentError(msg)
    normal, anomalous = (
        [
            template.replace(PLACE, state.replace(PLACE, class_name))
            for state in ensemble[key]
            for template in ensemble["templates"]
        ]
        for key in ("normal", "anomalous")
    )
    return normal, anomalous


@lru_cache
def _built_in(domain: str) -> Ensemble:
    return read_ensemble(Path(__file__).parent / f"{domain}.yaml")


def read_ensemble(path: str | Path) -> Ensemble:
    """Read an ensemble from a YAML file.

    Raises:
        ArgumentError: If the file cannot be read, or a list is missing, empty or has an entry without ``{}``.
    """
    path = Path(path).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        msg = f"prompts={str(path)!r} cannot be read as a YAML file (are its entries in quotation marks?): {error}"
        raise ArgumentError(msg) from error
    if not isinstance(content, dict) or set(content) != set(KEYS):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        msg = f"prompts={str(path)!r} must hold the three lists {', '.join(KEYS)}; it holds: {found or 'nothing'}."
        raise ArgumentError(msg)
    for key in KEYS:
        entries = content[key]
        if not isinstance(entries, list) or not entries:
            msg = f"prompts={str(path)!r}: {key!r} must be a list with at least one entry, not {entries!r}."
            raise ArgumentError(msg)
        wrong = [entry for entry in entries if not isinstance(entry, str) or PLACE not in entry]
        if wrong:
            belongs = "state" if key == "templates" else "object"
            msg = (
                f"prompts={str(path)!r}: the entry {wrong[0]!r} of {key!r} has no '{PLACE}' where the {belongs} "
                "belongs. Write it in quotation marks, since YAML reads bare braces as a mapping."
            )
            raise ArgumentError(msg)
    return content
