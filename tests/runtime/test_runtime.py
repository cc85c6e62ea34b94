"""The deploy side as a person uses it: Runtime, files of texts, the command line, and life without a compiler."""

import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitbert.errors import UserError
from bitbert.runtime import Runtime, native
from bitbert.runtime.forward import BATCH_TOKENS
from bitbert.runtime.info import binary_macs, describe_checkpoint
from bitbert.runtime.streaming import predict_file
from tests.conftest import run_module
from tests.golden.make_golden import PACKED

TEXTS = ["the river", ("the king", "finds the old bridge"), "", "a music letter in the quiet garden", "queen"] * 9


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.load(PACKED)


def test_answers_do_not_depend_on_the_batch(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    together = runtime.classify(TEXTS)
    assert together == [runtime.classify([text])[0] for text in TEXTS]
    monkeypatch.setattr("bitbert.runtime.forward.BATCH_TOKENS", 20)
    assert together == runtime.classify(TEXTS)
    assert BATCH_TOKENS > 20


def test_encode_takes_texts_and_ids(runtime: Runtime) -> None:
    ids, types = runtime.tokenizer.encode_pair("the river", None, 16)
    states = runtime.forward(ids, types).hidden_states[-1]
    expected = {"mean": states.mean(axis=0), "first": states[0], "pooler": runtime.forward(ids, types).pooled}
    for pooling, vector in expected.items():
        found = runtime.encode(["the river", ids, ("the river", "the king")], pooling=pooling)
        assert found.shape == (3, runtime.config.hidden_size)
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_allclose(found[0], vector, atol=1e-6)
        assert not np.array_equal(found[0], found[2])
    assert runtime.encode([]).shape == (0, runtime.config.hidden_size)


@pytest.mark.parametrize("ids", [[1.5], [[1, 2], [3, 4]], [[1], [2, 3]], [2**70], ["1"], 7, None])
def test_ids_that_are_no_sequence_of_integers_are_refused(runtime: Runtime, ids: Any) -> None:
    for ask in (lambda: runtime.encode([ids]), lambda: runtime.logits(ids, [0]), lambda: runtime.forward([1], ids)):
        with pytest.raises(UserError, match="wanted one sequence of integers"):
            ask()


@pytest.mark.parametrize("text", [None, 7, ("a", "b", "c"), ("a",), ("a", None), (1, 2)])
def test_what_is_no_text_is_refused(runtime: Runtime, text: Any) -> None:
    with pytest.raises(UserError, match="wanted a string or a pair of strings"):
        runtime.classify([text])


def test_a_pooling_that_does_not_exist_is_refused(runtime: Runtime) -> None:
    with pytest.raises(UserError, match="pooling 'max', wanted one of mean, first, pooler"):
        runtime.encode(["a"], pooling="max")


def test_threads_and_instruction_sets_answer_alike(runtime: Runtime) -> None:
    expected = runtime.classify(TEXTS)
    assert Runtime.load(PACKED, num_threads=2).classify(TEXTS) == expected
    for isa in native.instruction_sets():
        forced = Runtime.load(PACKED, isa=isa)
        assert forced.isa == isa
        assert forced.classify(TEXTS) == expected
    for runtime_of_numpy in (Runtime.load(PACKED, isa="numpy"), Runtime.load(PACKED, isa="numpy", num_threads=3)):
        assert runtime_of_numpy.isa == "numpy"
        for found, wanted in zip(runtime_of_numpy.classify(TEXTS), expected, strict=True):
            np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-5)


def test_threads_are_checked_without_the_library_too() -> None:
    for isa in (native.instruction_sets()[0], "numpy"):
        with pytest.raises(UserError, match="threads is 257, wanted 1 to 256"):
            Runtime.load(PACKED, isa=isa, num_threads=257)


@pytest.mark.usefixtures("without_library")
def test_numpy_answers_where_nothing_was_built(runtime: Runtime) -> None:
    plain = Runtime.load(PACKED)
    assert plain.isa == "numpy"
    np.testing.assert_allclose(plain.encode(TEXTS), runtime.encode(TEXTS), atol=1e-5)
    with pytest.raises(UserError, match="'portable' is not available here, wanted one of numpy"):
        Runtime.load(PACKED, isa="portable")
    with pytest.raises(UserError, match="the native library was not built"):
        native.Matrix(np.zeros((1, 1), np.uint64), 1)


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_ABI_VERSION", 99)
    native.load_library.cache_clear()
    with pytest.raises(UserError, match=r"has interface \d+, wanted 99; install bitbert again"):
        native.load_library()


def test_a_library_that_cannot_be_loaded_is_named_and_avoidable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "libbitbert.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native, "LIBRARY", broken)
    native.load_library.cache_clear()
    with pytest.raises(
        UserError, match=r"libbitbert.so' cannot be loaded .*; install bitbert again, or set BITBERT_ISA"
    ):
        Runtime.load(PACKED)
    assert Runtime.load(PACKED, isa="numpy").isa == "numpy"
    native.load_library.cache_clear()


def test_streaming_reads_no_further_than_it_must(runtime: Runtime) -> None:
    read = []

    def endless():
        while True:
            read.append(1)
            yield "the river " * 20

    answers = runtime.stream(endless())
    first = next(answers)
    assert first.label in runtime.config.labels
    assert len(read) <= BATCH_TOKENS // 16 + 2


def test_a_file_is_answered_line_by_line(runtime: Runtime, tmp_path: Path) -> None:
    lines = ["the river", "the king\tthe old bridge", "", "queen"]
    source, target = tmp_path / "texts.tsv", tmp_path / "answers.jsonl"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert predict_file(runtime, source, target) == 4
    found = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    expected = runtime.classify(["the river", ("the king", "the old bridge"), "", "queen"])
    assert [(answer["label"], answer["logits"]) for answer in found] == [(one.label, one.logits) for one in expected]


def test_an_output_changes_as_a_whole_or_not_at_all(runtime: Runtime, tmp_path: Path) -> None:
    texts, answers = tmp_path / "texts.tsv", tmp_path / "answers.jsonl"
    texts.write_bytes(b"the river\rthe king\nqueen\r\n")
    assert predict_file(runtime, texts, answers) == 2  # a lone carriage return ends no line
    before = answers.read_bytes()
    texts.write_text("the river\na\tb\tc\n", encoding="utf-8")
    with pytest.raises(UserError, match="3 fields"):
        predict_file(runtime, texts, answers)
    assert answers.read_bytes() == before
    texts.write_text("the river\nthe king\n", encoding="utf-8")
    assert predict_file(runtime, texts, texts) == 2
    assert [sorted(json.loads(line)) for line in texts.read_text().splitlines()] == 2 * [["label", "logits", "score"]]
    with pytest.raises(UserError, match=r"output .* cannot be written: Is a directory"):
        predict_file(runtime, answers, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answers.jsonl", "texts.tsv"]
    with pytest.raises(UserError, match="cannot be written: No space left on device; free some space"):
        predict_file(runtime, texts, Path("/dev/full"))


def test_a_pipe_is_written_as_answers_come(runtime: Runtime, tmp_path: Path) -> None:
    texts, pipe = tmp_path / "texts.tsv", tmp_path / "pipe"
    texts.write_text("the river\nthe king\n", encoding="utf-8")
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(pipe.read_text)
        assert predict_file(runtime, texts, pipe) == 2
        assert len(reader.result(timeout=60).splitlines()) == 2
    assert not pipe.is_file()


def test_text_that_is_not_unicode_is_refused(runtime: Runtime) -> None:
    with pytest.raises(UserError, match=r"text 'caf\\udce9' holds bytes that are not UTF-8"):
        runtime.classify(["caf\udce9"])
    with pytest.raises(UserError, match="not UTF-8"):
        runtime.encode([("the river", "\ud800")])


def test_numpy_says_that_it_answers_for_want_of_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BITBERT_ISA", raising=False)
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "absent.so")
    native.load_library.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no native library was built, so numpy answers"):
            assert Runtime.load(PACKED).isa == "numpy"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Runtime.load(PACKED, isa="numpy").isa == "numpy"
    finally:
        native.load_library.cache_clear()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\tc\n", "texts.tsv:1: 3 fields, wanted a text or two"),
        (b"\xff\xfe\n", "is not UTF-8"),
        (None, "cannot be opened"),
    ],
)
def test_bad_files_are_refused(runtime: Runtime, tmp_path: Path, content: bytes | None, message: str) -> None:
    source = tmp_path / "texts.tsv"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(UserError, match=message):
        predict_file(runtime, source, tmp_path / "answers.jsonl")


def test_the_door_streams_files_and_describes_models(tmp_path: Path) -> None:
    source, target = tmp_path / "texts.tsv", tmp_path / "answers.jsonl"
    source.write_text("the river\nthe king\n", encoding="utf-8")
    result = run_module("bitbert.runtime", PACKED, "--input", source, "--output", target, "--threads", 2)
    assert result.returncode == 0, result.stderr
    printed = run_module("bitbert.runtime", PACKED, "--input", source)
    assert printed.stdout == target.read_text(encoding="utf-8")
    info = run_module("bitbert.runtime", PACKED, "--info", env={"BITBERT_ISA": "portable"})
    assert info.returncode == 0, info.stderr
    assert "in use: portable" in info.stdout
    assert "binary weights" in info.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "wanted one of a TEXT, --input FILE or --info"),
        (("text", "--info"), "wanted one of a TEXT, --input FILE or --info"),
        (("text", "--output", "x"), "--output goes with --input"),
        (("text", "--threads", "0"), "number of threads is 0"),
    ],
)
def test_the_door_refuses_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = run_module("bitbert.runtime", PACKED, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_description_counts_right(runtime: Runtime) -> None:
    described = dict(describe_checkpoint(PACKED))
    config = runtime.config
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    encoder_bits = layers * (4 * hidden * hidden + 2 * hidden * inner) + hidden * hidden
    assert described["binary weights"].startswith(f"{encoder_bits + config.vocab_size * hidden:,} bits")
    assert (
        binary_macs(config, 7) == 7 * (encoder_bits - hidden * hidden) + 2 * 7 * 7 * hidden * layers + hidden * hidden
    )
