"""Lets the plain ``anomalib`` command know the models of anomalib-zsclip.

A ``.pth`` file (a ``.start`` file from Python 3.15 on) calls :func:`install` at every start of Python, so this module is
tiny and imports nothing but what is there already. It waits until somebody imports ``anomalib.models`` and then imports
``anomalib_zsclip``, which registers itself. Set the environment variable ``ANOMALIB_ZSCLIP_DISABLE=1`` to switch it off.
"""

import os
import sys


class _AfterAnomalibModels:
    """Finder that lets others find ``anomalib.models`` and runs the registration once its code has run.

    It stays until then: somebody who only asks whether there is such a module does not use it up.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        if name != "anomalib.models":
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None and finder is not _AfterAnomalibModels else None
            if spec is not None:
                break
        else:
            return None
        loader, run = spec.loader, spec.loader.exec_module

        def run_and_register(module):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            del loader.exec_module
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _AfterAnomalibModels]
            _run_quietly(run, module)
            if "anomalib_zsclip" in sys.modules:
                return  # it is being imported and registers itself
            try:
                import anomalib_zsclip  # noqa: F401
            except Exception as error:
                sys.stderr.write(f"anomalib-zsclip could not be loaded ({type(error).__name__}: {error})\n")

        loader.exec_module = run_and_register
        return spec


def _run_quietly(run, module):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Run the code of a module; in the command without the warnings of others that parts of them will go some day."""
    if os.path.basename(getattr(sys, "argv", [""])[0]).split(".")[0] != "anomalib":
        run(module)
        return
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        run(module)


def install() -> None:
    """Put the finder in place, once, unless the environment says no."""
    wanted = os.environ.get("ANOMALIB_ZSCLIP_DISABLE", "").strip().lower() in ("", "0", "false", "no")
    if wanted and _AfterAnomalibModels not in sys.meta_path:
        sys.meta_path.insert(0, _AfterAnomalibModels)
