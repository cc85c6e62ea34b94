"""What a build has done so far, beside its output: a killed build continues from it.

Each finished unit and shard has a record, written last. Files without a record are those of a process that
was killed, and are written again with the same bytes.
"""

import shutil
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bitbert.errors import UserError
from bitbert.files import read_json_object, write_json_atomically

from .config import DataConfig
from .units import Unit

# Raised when the same config and corpus would give other bytes than before.
BUILD_VERSION = 1


class WorkFolder:
    """Paths and records of the build that makes ``output``.

    Attributes:
        root: ``.NAME.work`` beside the output; removed when the output is whole.
    """

    def __init__(self, output: Path) -> None:
        self.root = output.with_name(f".{output.name}.work")

    def open(
        self, config: DataConfig, tokenizer_fingerprint: str, units: Sequence[Unit], *, discard_other: bool
    ) -> None:
        """Create the folder, or check that what is there belongs to the same build.

        A file of the corpus that changed since is read again. The others are not, unless it is one unit more or less
        now: units go by number.

        Raises:
            UserError: it belongs to another config, tokenizer or list of files, and ``discard_other`` is false.
        """
        marker = self.root / "build.json"
        described = {
            "build_version": BUILD_VERSION,
            "config": config.model_dump(mode="json"),
            "tokenizer": tokenizer_fingerprint,
            "corpus": [
                [source, origin] for source, origin in dict.fromkeys((unit.source, unit.origin) for unit in units)
            ],
        }
        parts = [unit.describe() for unit in units]
        if marker.is_file():
            found = read_json_object(marker, "record of an unfinished build")
            changed = [key for key, value in described.items() if found.get(key) != value]
            if changed and not discard_other:
                raise UserError(
                    f"{str(self.root)!r} holds an unfinished build with another {' and '.join(changed)}; go back "
                    "to what its build.json names, choose another output=..., or pass --replace to start anew"
                )
            if changed:
                self.remove()
            elif found["units"] == parts:
                return
            else:
                pairs = enumerate(zip_longest(found["units"], parts))
                self._forget_units([number for number, (before, now) in pairs if before != now])
        for folder in ("units", "blocks", "samples", "shards"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        write_json_atomically(marker, {**described, "units": parts})

    def _forget_units(self, numbers: list[int]) -> None:
        for number in numbers:
            self.unit_record(number).unlink(missing_ok=True)
        for record in (self.plan_file, *(self.root / "shards").glob("*.json")):
            record.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def block_stem(self, unit: int) -> Path:
        return self.root / "blocks" / f"{unit:06d}"

    def block(self, name: str) -> Path:
        return self.root / "blocks" / name

    def sample_file(self, unit: int) -> Path:
        return self.root / "samples" / f"{unit:06d}.jsonl"

    def unit_record(self, unit: int) -> Path:
        return self.root / "units" / f"{unit:06d}.json"

    def shard_file(self, split: str, number: int) -> Path:
        return self.root / "shards" / f"{split}-{number:05d}.arrow"

    def shard_record(self, split: str, number: int) -> Path:
        return self.root / "shards" / f"{split}-{number:05d}.json"

    @property
    def plan_file(self) -> Path:
        return self.root / "plan.json"

    @property
    def plan_arrays(self) -> Path:
        return self.root / "plan.npz"

    def read_record(self, path: Path) -> dict[str, Any] | None:
        """A finished step's record, or None where the step is still to be done."""
        return read_json_object(path, "record of a finished step") if path.is_file() else None
