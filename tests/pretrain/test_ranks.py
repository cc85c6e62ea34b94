"""The hash that compares replicas, and the watch over lost ranks."""

import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitbert.distributed import Topology
from bitbert.pretrain.ranks import bits_hash
from bitbert.pretrain.watchdog import (
    EXIT_LOST_RANK,
    LostRankError,
    Watchdog,
    is_lost_rank,
    lost_ranks_named,
)

CPU = torch.device("cpu")
TWO = Topology(0, 2, 0, "127.0.0.1", 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20 + 10), st.integers(0, 31), st.integers(0, 2**31))
def test_any_flipped_bit_changes_the_hash(place: int, bit: int, seed: int) -> None:
    """Also in the second chunk of a long tensor."""
    torch.manual_seed(seed)
    values = torch.randn(2**20 + 11)
    before = bits_hash([values], CPU)
    values.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 2**bit
    assert not torch.equal(bits_hash([values], CPU), before)


def test_order_and_sign_of_zero_count() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    assert not torch.equal(bits_hash([a], CPU), bits_hash([b], CPU))
    assert not torch.equal(bits_hash([a, b], CPU), bits_hash([b, a], CPU))
    assert not torch.equal(bits_hash([torch.zeros(3)], CPU), bits_hash([-torch.zeros(3)], CPU))
    flags = torch.tensor([True, False])
    assert not torch.equal(bits_hash([flags], CPU), bits_hash([~flags], CPU))
    assert torch.equal(bits_hash([a.clone(), flags.clone()], CPU), bits_hash([a, flags], CPU))


def test_a_silent_peer_ends_the_process_with_one_line(tmp_path: Path) -> None:
    """Whatever the main thread hangs in: here a sleep stands for a wait on a device."""
    log = tmp_path / "log"
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
        import sys

        sys.stderr = open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
        Watchdog(TWO, timeout_s=0.2).beat(7)
        time.sleep(30)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == EXIT_LOST_RANK
    (line,) = log.read_text(encoding="utf-8").strip().splitlines()
    assert line.startswith("error: rank 0: another rank is lost (no answer for 0.2 s since step 7); ")


def test_a_stopped_watch_and_a_single_rank_end_nothing() -> None:
    watch = Watchdog(TWO, timeout_s=0.1)
    watch.stop()
    Watchdog(Topology(0, 1, 0, "127.0.0.1", 0), timeout_s=0.1)
    time.sleep(0.3)


def test_errors_of_the_communication_are_told_from_others() -> None:
    gloo = RuntimeError("[/src/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:5: Connection reset by peer. Hm")
    assert is_lost_rank(gloo)
    said = r"lost \(Read error \[127\.0\.0\.1\]:5: Connection reset by peer\)"
    with pytest.raises(LostRankError, match=said), lost_ranks_named(TWO):
        raise gloo
    with pytest.raises(RuntimeError, match="out of memory"), lost_ranks_named(TWO):
        raise RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="gloo"), lost_ranks_named(Topology(0, 1, 0, "", 0)):
        raise gloo
