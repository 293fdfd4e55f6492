"""How anomalib finds us.

anomalib looks for models in three places: among the direct subclasses of ``AnomalibModule`` (``list_models``,
``get_model("zs_clip")``, the command line), among the attributes of ``anomalib.models``
(``get_model({"class_path": "ZsClip"})``), and in the modules of ``anomalib.models.ALLOWED_MODULES`` (dotted paths). Data
modules are attributes of ``anomalib.data``. :func:`register` serves all of them. What imports this package in a process
that only says ``anomalib`` is the start-up hook in the folder ``hook``.
"""

from __future__ import annotations


def register() -> None:
    """Make models and data modules known to anomalib; safe to call more than once."""
    # While the start-up hook runs, anomalib.models is complete but not yet an attribute of anomalib.
    from anomalib import data as anomalib_data
    from anomalib import models as anomalib_models

    from . import data, models

    for name in models.__all__:
        setattr(anomalib_models, name, getattr(models, name))
    for name in data.__all__:
        setattr(anomalib_data, name, getattr(data, name))
    anomalib_models.ALLOWED_MODULES.update({"anomalib_zsclip", "anomalib_zsclip.comparison", "anomalib_zsclip.models"})
