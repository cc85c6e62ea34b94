"""The import arrows of the architecture, enforced from the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

ROOMS = ("data_prep", "pretrain", "finetune")
RUNTIME_MAY_IMPORT = tuple(
    f"bitbert.{name}" for name in ("runtime", "packed", "released", "tokenizer", "shared_library", "files", "errors")
)
DOORS_OF_HEAVY_PACKAGES = {
    "deepspeed": {"pretrain/engine.py", "pretrain/checkpoint.py"},
    "datasets": {"data_prep/sources.py", "finetune/hub.py", "pretrain/data.py"},
    "mlflow": {"bitbert/mlflow_mirror.py"},
}


def module_name(path: Path) -> str:
    relative = path.relative_to(REPOSITORY).with_suffix("")
    parts = list(relative.parts)
    if parts[0] in ROOMS:
        parts.insert(0, "bitbert")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> list[Path]:
    folders = [REPOSITORY / name for name in ("bitbert", *ROOMS)]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Absolute names of all modules that ``path`` imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_arrows(path: Path) -> None:
    own = module_name(path)
    rooms = tuple(f"bitbert.{room}" for room in ROOMS)
    own_room = next((room for room in rooms if within(own, (room,))), None)
    for name in imports(path):
        if within(name, rooms):
            assert own_room is not None, f"{own} is shared and imports the room {name}"
            assert within(name, (own_room,)), f"{own} imports another room: {name}"
        if within(own, ("bitbert.runtime",)) and within(name, ("bitbert",)):
            assert within(name, RUNTIME_MAY_IMPORT), f"{own} imports {name}"
        if within(own, ("bitbert.packed", "bitbert.shards", "bitbert.config", "bitbert.tokenizer")):
            assert not within(name, ("bitbert.model", "torch", "transformers")), f"{own} imports {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_heavy_packages_have_one_door_and_are_imported_where_used(path: Path) -> None:
    relative = str(path.relative_to(REPOSITORY))
    for package, doors in DOORS_OF_HEAVY_PACKAGES.items():
        if any(within(name, (package,)) for name in imports(path)):
            assert relative in doors
        assert not any(within(name, (package,)) for name in imports(path, top_level_only=True)), (
            f"{relative} imports {package} at its top"
        )


def test_test_can_fail(tmp_path: Path) -> None:
    """The name resolution that the arrow test stands on sees relative and absolute imports."""
    path = REPOSITORY / "pretrain" / "loop.py"
    found = set(imports(path))
    assert "bitbert.pretrain.engine" in found
    assert "bitbert.tracking" in found


@pytest.mark.parametrize(
    "module",
    ["bitbert", "bitbert.packed", "bitbert.runtime", "bitbert.runtime.__main__", "bitbert.tokenizer"],
)
def test_deploy_side_loads_neither_torch_nor_transformers(module: str) -> None:
    heavy = ("torch", "transformers", "pydantic", "pyarrow")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_files_are_small() -> None:
    lengths = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in sources())
    assert lengths[-1] <= 500
    assert lengths[len(lengths) // 2] < 200
