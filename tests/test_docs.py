"""What the documents name is there: files, links, config keys with their defaults."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from bitbert.finetune.config import FinetuneConfig
from bitbert.pretrain.config import PretrainConfig
from tests.conftest import REPOSITORY

DOCUMENTS = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "native/README.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "checkpoints").rglob("README.md")),
]
_FOLDERS = "benchmarks|bitbert|checkpoints|configs|data_prep|docs|finetune|native|pretrain|slurm|tests"
_PATH = re.compile(rf"(?<![\w/.*-])(?:{_FOLDERS})/[\w./-]+\.(?:py|yaml|md|json|jsonl|sh|sbatch|c|h|png)\b")
_LINK = re.compile(r"\]\(([^)\s#]+)?(?:#([^)\s]+))?\)")
_MADE_BY_READERS = {
    "configs/pretrain/mine.yaml",
    "docs/decisions/NNNN-title.md",
    "finetune/results.md",  # of a run folder, as the next
    "finetune/TASK/results.json",
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_and_links_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for path in set(_PATH.findall(text)) - _MADE_BY_READERS:
        assert (REPOSITORY / path).exists() or (document.parent / path).exists(), path
    for target, section in _LINK.findall(text):
        if "://" in target:
            continue
        file = (document.parent / target).resolve() if target else document
        assert file.exists(), target
        assert not section or section in sections(file), f"{target}#{section}"


def sections(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def keys(config: type[BaseModel], *skipped: str) -> Iterator[str]:
    """Names of all keys of a config, sections included."""
    for name, field in config.model_fields.items():
        if name in skipped:
            continue
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation)


@pytest.mark.parametrize(
    ("config", "documents"),
    [
        (PretrainConfig, ["docs/pretraining.md", "docs/pretraining_faults.md"]),
        (FinetuneConfig, ["docs/finetuning.md"]),
    ],
)
def test_every_key_is_documented(config: type[BaseModel], documents: list[str]) -> None:
    text = "\n".join((REPOSITORY / name).read_text(encoding="utf-8") for name in documents)
    assert [key for key in keys(config) if not re.search(rf"\b{key}\b", text)] == []


def test_values_that_are_called_defaults_are_the_defaults() -> None:
    """docs/pretraining.md shows whole sections, which are the defaults but for those that have none."""
    text = (REPOSITORY / "docs" / "pretraining.md").read_text(encoding="utf-8")
    shown: dict[str, Any] = {}
    for block in re.findall(r"(?:^    \S.*\n(?:    .*\n|\n)*)", text.partition("section by section")[2], re.MULTILINE):
        try:
            found = yaml.safe_load(block)
        except yaml.YAMLError:
            continue
        if isinstance(found, dict):
            shown |= found
    required = {"output": "x", "data": {"train": "x", "heldout": "x"}, "tokenizer": "x", "teacher": "x"}
    defaults = PretrainConfig.model_validate(required).model_dump(mode="json")
    for key in (*required, "model", "phases", "curriculum"):  # examples, and said to be
        shown.pop(key, None)
    assert shown.keys() <= defaults.keys()
    assert len(shown) > 10
    for key, value in shown.items():
        if isinstance(value, dict):
            assert value == {name: defaults[key][name] for name in value}, key
            assert value.keys() == defaults[key].keys(), key
        else:
            assert value == defaults[key], key
