"""Whole builds: the same bytes however they are made, and what the output holds."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitbert.data_prep.config import DataConfig
from bitbert.data_prep.write_shards import Share, build_shards, build_share
from bitbert.errors import UserError
from bitbert.shards import ShardReader
from bitbert.tokenizer import Tokenizer

from .conftest import make_documents, tree_hashes, write_jsonl

MakeConfig = Callable[..., DataConfig]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Five files with a few equal documents among them."""
    documents = make_documents(250)
    documents[40] = documents[3]
    documents[201] = documents[3]
    for part in range(5):
        write_jsonl(tmp_path / "corpus" / f"part-{part}.jsonl", documents[part * 50 : part * 50 + 50])
    return tmp_path / "corpus"


def test_same_bytes_for_any_number_of_workers_and_tasks(corpus: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    pair_task = {"train_pairs": 20, "eval_pairs": 10}

    def config(name: str) -> DataConfig:
        return make_config(corpus, output=str(tmp_path / name / "shards"), pair_task=pair_task)

    def hashes(name: str) -> dict[str, str]:
        found = tree_hashes(tmp_path / name / "shards")
        for path in [path for path in found if path.endswith("manifest.json")]:
            manifest = json.loads((tmp_path / name / "shards" / path).read_text())
            del manifest["provenance"]["config"]["output"], found[path]
            found[path] = json.dumps(manifest)
        return found

    for workers in (1, 2, 4):
        build_shards(config(f"workers-{workers}"), workers=workers)
    for index in (2, 0, 1):  # tasks end in any order
        build_share(config("tasks"), Share(index, 3), workers=1)
    assert not (tmp_path / "tasks" / "shards").exists()
    build_shards(config("tasks"), workers=1)
    for index in (1, 2, 0, 0, 1):  # a second round of tasks cuts the shards
        build_share(config("rounds"), Share(index, 3), workers=1)
    build_shards(config("rounds"), workers=1)
    expected = hashes("workers-1")
    assert sum(name.startswith("train/shard-") for name in expected) >= 3
    assert {"report.json", "report.html", "pair_task/train.csv", "heldout/manifest.json"} <= set(expected)
    for name in ("workers-2", "workers-4", "tasks", "rounds"):
        assert hashes(name) == expected, name
    assert not list(tmp_path.glob("*/.*"))  # no work folder is left


def test_tasks_say_what_is_left(corpus: Path, make_config: MakeConfig) -> None:
    config = make_config(corpus)
    assert "3 of 5 units are still unread" in build_share(config, Share(0, 3), workers=1)
    build_share(config, Share(1, 3), workers=1)
    assert "all units are read" in build_share(config, Share(2, 3), workers=1)
    assert "this task's shards are built" in build_share(config, Share(2, 3), workers=1)


def test_another_seed_gives_other_rows(corpus: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    builds = [make_config(corpus, output=str(tmp_path / str(seed)), seed=seed) for seed in (1, 2)]
    first, second = (build_shards(config, workers=1) and tree_hashes(Path(config.output)) for config in builds)
    assert first["train/shard-00000.arrow"] != second["train/shard-00000.arrow"]


def test_all_text_is_in_the_rows(tmp_path: Path, make_config: MakeConfig, tokenizer: Tokenizer) -> None:
    """Own tokens of the rows are those of the documents: nothing lost, nothing twice, held-out apart."""
    documents = make_documents(120)
    report = build_shards(make_config(write_jsonl(tmp_path / "a.jsonl", documents), objective="mlm"), workers=1)
    rows = [list(row.input_ids) for split in ("train", "heldout") for row in ShardReader(tmp_path / "shards" / split)]
    assert all((row[0], row[-1]) == (tokenizer.cls_id, tokenizer.sep_id) and len(row) <= 48 for row in rows)
    text = sorted(token for row in rows for token in row[1:-1])
    assert text == sorted(token for ids in tokenizer.encode_batch(documents) for token in ids)
    assert report["sources"][0]["text_tokens"] == len(text)
    assert "random_next_share" not in report["train"]
    reader = ShardReader(tmp_path / "shards" / "train")
    assert not reader.manifest["nsp"]
    assert all(row.segment_b_start == len(row.input_ids) and row.next_sentence_label == 0 for row in reader)


def test_pairs_are_in_place(tmp_path: Path, make_config: MakeConfig, tokenizer: Tokenizer) -> None:
    build_shards(make_config(write_jsonl(tmp_path / "a.jsonl", make_documents(300))), workers=1)
    reader = ShardReader(tmp_path / "shards" / "train")
    labels = []
    for row in reader:
        ids = list(row.input_ids)
        assert ids[0] == tokenizer.cls_id
        assert [place for place, token in enumerate(ids) if token == tokenizer.sep_id] == [
            row.segment_b_start - 1,
            len(ids) - 1,
        ]
        labels.append(row.next_sentence_label)
    assert abs(sum(labels) / len(labels) - 0.5) < 0.06
    assert reader.tokenizer["fingerprint"] == tokenizer.fingerprint


def test_duplicates_are_dropped_across_files_and_never_cross_the_split(tmp_path: Path, make_config: MakeConfig) -> None:
    documents = make_documents(100)
    once = write_jsonl(tmp_path / "once.jsonl", documents)
    twice = write_jsonl(tmp_path / "twice.jsonl", documents[::-1])
    sources = [{"path": str(once)}, {"path": str(twice)}]
    report = build_shards(make_config(sources=sources), workers=1)
    assert report["dropped"] == {"duplicate": 100}
    assert [source["dropped"] for source in report["sources"]] == [{}, {"duplicate": 100}]
    alone = build_shards(make_config(once, output=str(tmp_path / "alone")), workers=1)
    assert report["train"] == alone["train"]
    assert (
        tree_hashes(tmp_path / "shards" / "train")["shard-00000.arrow"]
        == tree_hashes(tmp_path / "alone" / "train")["shard-00000.arrow"]
    )


def test_near_duplicates_are_dropped_on_wish(tmp_path: Path, make_config: MakeConfig) -> None:
    documents = make_documents(60, sentences=20)
    alike = [f"{text} One more sentence." for text in documents[:10]]
    path = write_jsonl(tmp_path / "a.jsonl", documents + alike)
    kept = build_shards(make_config(path), workers=1)
    assert kept["dropped"] == {}
    dropped = build_shards(
        make_config(path, near_duplicates={"similarity": 0.8}, output=str(tmp_path / "near")), workers=2
    )
    assert dropped["dropped"]["near_duplicate"] >= 9
    assert dropped["train"]["documents"] + dropped["heldout"]["documents"] == 70 - dropped["dropped"]["near_duplicate"]


def test_weights_say_how_often_documents_are_used(tmp_path: Path, make_config: MakeConfig) -> None:
    sources: list[dict[str, Any]] = [
        {"path": str(write_jsonl(tmp_path / "a.jsonl", make_documents(200, seed=1))), "weight": 2.5},
        {
            "path": str(write_jsonl(tmp_path / "b.jsonl", make_documents(200, seed=2))),
            "weight": 0.25,
            "license": "CC0",
        },
    ]
    report = build_shards(make_config(sources=sources, heldout_fraction=0.1), workers=1)
    plain = build_shards(
        make_config(
            sources=[{**source, "weight": 1} for source in sources],
            heldout_fraction=0.1,
            output=str(tmp_path / "plain"),
        ),
        workers=1,
    )
    often, rarely = (
        weighted["text_tokens"] / single["text_tokens"]
        for weighted, single in zip(report["sources"], plain["sources"], strict=True)
    )
    assert 2.1 < often < 2.7  # held-out documents are used once
    assert 0.15 < rarely < 0.35
    assert report["dropped"]["not_sampled"] > 120
    manifest = ShardReader(tmp_path / "shards" / "train").manifest
    assert manifest["provenance"]["sources"][1] == {
        "source": sources[1]["path"],
        "license": "CC0",
        "weight": 0.25,
        "files": [{"name": "b.jsonl", "bytes": Path(sources[1]["path"]).stat().st_size}],
    }


def test_drops_are_counted_by_reason(tmp_path: Path, make_config: MakeConfig) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*make_documents(40), "", "short", "1234567890 " * 9, "word " * 300])
    with open(path, "ab") as file:
        file.write(b"not json\n")
    changes = {"clean": {"max_chars": 1400}, "bad_input": "skip"}
    report = build_shards(make_config(path, **changes), workers=1)
    assert report["dropped"] == {
        "empty": 1,
        "few_letters": 1,
        "invalid_row": 1,
        "too_long": 1,
        "too_short": 1,
    }
    page = (tmp_path / "shards" / "report.html").read_text(encoding="utf-8")
    assert "few letters" in page
    assert f"{report['train']['tokens']:,}" in page
    assert page.count("<rect") == 2 * len(report["train"]["length_histogram"])
    assert sum(report["train"]["length_histogram"]) == report["train"]["rows"]


def test_too_small_a_corpus_is_refused(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(write_jsonl(tmp_path / "a.jsonl", make_documents(1)))
    with pytest.raises(UserError, match=r"gets [01] documents, wanted at least 2; give a larger corpus"):
        build_shards(config, workers=1)
    assert not Path(config.output).exists()


@pytest.mark.parametrize("changes", [{}, {"near_duplicates": {"similarity": 0.8}}])
def test_a_corpus_of_which_nothing_stays_is_refused(
    tmp_path: Path, make_config: MakeConfig, changes: dict[str, Any]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a short line\n\nanother one\n")
    message = r"no document of the corpus stays \(left out: too_short 2\); check .* text_field and .* \(min_chars=32\)"
    with pytest.raises(UserError, match=message):
        build_shards(make_config(path, **changes), workers=1)
    path.write_text("")
    with pytest.raises(UserError, match=r"\(left out: nothing\)"):
        build_shards(make_config(path, **changes), workers=1)
    write_jsonl(tmp_path / "b.jsonl", make_documents(60))
    build_shards(make_config(tmp_path / "b.jsonl", **changes), replace=True, workers=1)


def test_tokenizer_is_pinned_by_its_fingerprint(corpus: Path, make_config: MakeConfig, tokenizer: Tokenizer) -> None:
    build_shards(make_config(corpus, tokenizer_fingerprint=tokenizer.fingerprint[:12]), workers=1)
    with pytest.raises(UserError, match=f"has fingerprint {tokenizer.fingerprint}, the config wants 0123456789"):
        build_shards(make_config(corpus, tokenizer_fingerprint="0123456789"), replace=True, workers=1)


def test_real_text_builds_with_the_bert_vocabulary(data_folder: Path, make_config: MakeConfig) -> None:
    config = make_config(data_folder / "corpus" / "tiny.jsonl", tokenizer=str(data_folder / "vocab"), max_length=512)
    report = build_shards(config, workers=1)
    # Documents shorter than a row are not filled up with strangers: the length of a row would tell its label.
    assert report["train"]["padding_share"] < 0.4
    assert ShardReader(Path(config.output) / "train").tokenizer["fingerprint"].startswith("9ef8b7fffba2")
    assert os.listdir(Path(config.output).parent).count("shards") == 1
