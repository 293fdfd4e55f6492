"""Prompts about random words: the idea of Tamura (BMVC 2023, arXiv 2308.11119), with phrases of our own."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

from anomalib_zsclip.errors import ArgumentError, check_list, check_whole_number

NORMAL_STATES = ("{}", "flawless {}", "perfect {}", "unblemished {}", "normal {}", "undamaged {}", "intact {}",
                 "{} without flaw", "{} without defect", "{} without damage", "{} in good condition")  # fmt: skip
ANOMALOUS_STATES = ("damaged {}", "broken {}", "defective {}", "flawed {}", "abnormal {}", "faulty {}", "blemished {}",
                    "{} with flaw", "{} with defect", "{} with damage", "{} in bad condition")  # fmt: skip
TEMPLATES = ("{}", "a photo of {}", "a photo of a {}", "a photo of the {}", "a close-up photo of a {}",
             "a cropped photo of the {}", "a bright photo of the {}", "a dark photo of a {}", "a blurry photo of the {}",
             "a photo of a {} for visual inspection")  # fmt: skip


def random_words(rng: random.Random, count: int, length: tuple[int, int]) -> str:
    """Some words of random letters, ``length`` = shortest and longest."""
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(*length))) for _ in range(count))


def random_word_prompts(
    count: int = 1000,
    *,
    words: tuple[int, int] = (1, 3),
    letters: tuple[int, int] = (3, 8),
    normal_states: Sequence[str] = NORMAL_STATES,
    anomalous_states: Sequence[str] = ANOMALOUS_STATES,
    templates: Sequence[str] = TEMPLATES,
    seed: int = 0,
) -> tuple[list[str], list[str]]:
    """Make ``count`` prompts per class.

    The two lists differ in nothing but the state: the i-th prompts of both share template and words, so that a
    classifier of their embeddings can learn the state alone, whatever it is that is said to be damaged.

    Args:
        count: Prompts per class.
        words: Fewest and most random words in a prompt.
        letters: Fewest and most letters of a random word.
        normal_states: Phrases with one ``{}`` for the words.
        anomalous_states: Phrases with one ``{}`` for the words.
        templates: Sentences with one ``{}`` for the phrase.
        seed: Seed of the choices.

    Returns:
        Normal prompts and anomalous prompts.

    Raises:
        ArgumentError: If there is nothing to choose from, a phrase has no ``{}``, or a range is empty.
    """
    if not 1 <= count <= 1_000_000:
        msg = f"count={count} prompts per class: give a number from 1 to 1,000,000."
        raise ArgumentError(msg)
    for name, bounds in (("words", words), ("letters", letters)):
        check_list(name, bounds, "two whole numbers, the fewest and the most, from 1 to 64", least=2)
        for index, bound in enumerate(bounds):
            check_whole_number(f"{name}[{index}]", bound, 1)
        if len(bounds) != 2 or not bounds[0] <= bounds[1] <= 64:
            msg = f"{name}={bounds!r}: give the fewest and the most, from 1 to 64."
            raise ArgumentError(msg)
    phrase_lists = {"normal_states": normal_states, "anomalous_states": anomalous_states, "templates": templates}
    for name, phrases in phrase_lists.items():
        check_phrases(name, phrases)

    rng = random.Random(seed)
    normal, anomalous = [], []
    for _ in range(count):
        template = rng.choice(list(templates))
        noun = random_words(rng, rng.randint(*words), letters)
        normal.append(template.format(rng.choice(list(normal_states)).format(noun)))
        anomalous.append(template.format(rng.choice(list(anomalous_states)).format(noun)))
    return normal, anomalous


def check_phrases(name: str, phrases: Sequence[str]) -> None:
    """Raise ``ArgumentError`` if there are no phrases or one has not exactly one ``{}``."""
    check_list(name, phrases, "at least one phrase")
    for phrase in phrases:
        if not isinstance(phrase, str) or phrase.count("{}") != 1 or set(phrase.replace("{}", "")) & set("{}"):
            msg = f"{name}: the phrase {phrase!r} must have exactly one {{}}, where the name goes."
            raise ArgumentError(msg)
