"""timm's MobileNetV5 with few channels, for the environment that goldens are made in.

timm imports torchvision for its data sets, which no golden needs, and its encoder gives 2048
channels whatever it is asked for.
"""

from __future__ import annotations

import copy
import importlib
import sys
import types
from typing import Any

_MODULES = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.models.feature_extraction",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.utils",
)


class _Names(type):
    """A class whose every attribute is its own name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Anything(types.ModuleType):
    """A module in which every name is a class."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        # A package to Python: others stand inside.
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {})


def install(n_out: int) -> None:
    """Make timm's encoder give `n_out` channels, and its arguments stay as they were."""
    # transformers takes timm only where there is torchvision, and must go on without that itself.
    utils: Any = importlib.import_module("transformers.utils")
    backends: Any = importlib.import_module("transformers.utils.import_utils")
    utils.is_torchvision_available()
    for module in (utils, backends):
        module.is_timm_available = lambda: True
    backends.BACKENDS_MAPPING["timm"] = (lambda: True, "")
    for name in _MODULES:
        parent, _, last = name.rpartition(".")
        module = sys.modules.setdefault(name, _Anything(name))
        if parent:
            setattr(sys.modules[parent], last, module)
    tower: Any = importlib.import_module("timm.models.mobilenetv5")
    adapter = tower.MobileNetV5MultiScaleFusionAdapter
    make = tower._gen_mobilenet_v5

    def narrow(*arguments: Any, out_chs: int, **settings: Any) -> Any:
        del out_chs
        return adapter(*arguments, out_chs=n_out, **settings)

    def fresh(*arguments: Any, **settings: Any) -> Any:
        return make(*arguments, **copy.deepcopy(settings))

    tower.MobileNetV5MultiScaleFusionAdapter = narrow
    tower._gen_mobilenet_v5 = fresh
