"""``import bitbert`` makes transformers know the model, without importing transformers itself.

transformers has no entry points: a model type exists for its Auto classes once somebody registered it, which
``import bitbert.model`` does. That import takes seconds and pulls torch in, so ``import bitbert`` must not do it for
a process that only runs packed models. Nor can it happen while transformers is still importing itself. So the first
call of ``AutoConfig.from_pretrained``, through which every Auto class and pipeline learns the model type, imports
``bitbert.model`` first; a finder puts that in place when transformers' Auto module is imported.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto.configuration_auto"


def install() -> None:
    """Have the model registered on first use, whether transformers was imported already or will be."""
    if _AUTO in sys.modules:
        _register_on_first_use(sys.modules[_AUTO].AutoConfig)
    else:
        sys.meta_path.insert(0, _AutoFinder())


def _register_on_first_use(auto_config: Any) -> None:
    original = auto_config.__dict__["from_pretrained"]

    @functools.wraps(original.__func__)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        auto_config.from_pretrained = original
        if importlib.util.find_spec("torch") is not None:
            importlib.import_module("bitbert.model")
        return cls.from_pretrained(*args, **kwargs)

    auto_config.from_pretrained = classmethod(from_pretrained)


class _AutoFinder:
    """Lets the other finders find transformers' Auto module and hands their loader on with an act after it."""

    # importlib.abc's base classes would add nothing but their import to every process.
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenPatch(spec.loader)
        return spec


class _ThenPatch:
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register_on_first_use(module.AutoConfig)
