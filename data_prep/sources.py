"""The units of all sources; and datasets of the Hugging Face hub, streamed: the one door to `datasets`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitbert.errors import UserError

from .config import Policy, SourceConfig
from .units import RANGE_BYTES, Unit, file_units, source_files


def list_units(
    sources: list[SourceConfig],
    *,
    output: Path | None = None,
    policy: Policy = "fail",
    range_bytes: int = RANGE_BYTES,
) -> list[Unit]:
    """All units of all sources, in the order of the config and of the file names.

    Args:
        output: folder to be built; what it holds is no corpus, where it lies below a source's folder.
        policy: ``skip`` leaves a damaged file to its reader, which counts it.

    Raises:
        UserError: a source has no file, a file is of an unknown kind or damaged, or a dataset cannot be opened.
    """
    units: list[Unit] = []
    for number, source in enumerate(sources):
        if source.dataset is not None:
            units.extend(_hub_units(number, source))
        else:
            for path in source_files(source, output):
                units.extend(file_units(number, path, range_bytes, policy))
    return units


def _hub_units(source_index: int, source: SourceConfig) -> list[Unit]:
    """One unit for each shard of the dataset, pinned to the commit it has now.

    Raises:
        UserError: the dataset cannot be opened.
    """
    assert source.dataset is not None
    commit = _resolve_commit(source)
    num_shards = _open(source, commit).num_shards
    return [Unit(source_index, "hub", source.dataset, shard, num_shards, 0, commit) for shard in range(num_shards)]


def read_hub_rows(unit: Unit, source: SourceConfig) -> Iterator[Any]:
    """The rows of one unit, in the dataset's order."""
    assert unit.stop is not None
    yield from _open(source, unit.stamp).shard(num_shards=unit.stop, index=unit.start)


def _open(source: SourceConfig, commit: str) -> Any:
    from datasets import load_dataset

    revision = None if commit == "local" else commit
    try:
        return load_dataset(source.dataset, source.name, split=source.split, revision=revision, streaming=True)
    except Exception as error:  # offline, unknown id, script-based: the hub raises many kinds
        raise _refusal(source, error) from error


def _resolve_commit(source: SourceConfig) -> str:
    """The commit that ``revision`` names now; a branch may move between two array tasks, a commit does not."""
    if Path(str(source.dataset)).exists():
        return "local"
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(str(source.dataset), revision=source.revision).sha)
    except Exception as error:  # offline, unknown id, gated
        raise _refusal(source, error) from error


def _refusal(source: SourceConfig, error: Exception) -> UserError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(
        f"dataset {source.dataset!r} ({source.name}) cannot be opened: {reason}; "
        "check the id and the network, or use a local path"
    )
