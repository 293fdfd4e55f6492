"""Command ``python -m anomalib_zsclip.convert_prompts``: prompts of AnomalyCLIP's published program to ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from anomalib_zsclip.errors import ZsClipError
from anomalib_zsclip.prompts.learned import convert_official_prompts


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert ``official.pth`` to ``ours.safetensors``; mistakes end with their message and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m anomalib_zsclip.convert_prompts",
        description="Convert learned prompts of AnomalyCLIP's published program to a .safetensors for AnomalyClip.",
    )
    parser.add_argument("source", help="a .pth with {'prompt_learner': state_dict}; nothing in it is executed")
    parser.add_argument("target", help="the .safetensors to write")
    options = parser.parse_args(arguments)
    try:
        prompts = convert_official_prompts(options.source, options.target)
    except (ZsClipError, OSError) as error:
        parser.exit(1, f"{error}\n")
    sizes = ", ".join(f"{name}={value}" for name, value in prompts.dimensions.items())
    print(f"{options.target}: {sizes}")


if __name__ == "__main__":
    main()
