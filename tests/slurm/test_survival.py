"""What happens to a running job on a live Slurm, and that the run still ends with the same bits."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster
from tests.slurm.conftest import PretrainJob, Site

pytestmark = pytest.mark.usefixtures("pipeline")  # its shards are trained on, its run is what the others are held to


@pytest.fixture(autouse=True)
def empty_queue(cluster: SlurmCluster) -> Iterator[None]:
    """A test that fails leaves no job to the next one."""
    yield
    cluster.cancel_all()


def assert_same_bits(job: PretrainJob) -> None:
    final = Path("final") / "model.safetensors"
    undisturbed = job.site.root / "runs" / "pretrain"
    assert (job.run / final).read_bytes() == (undisturbed / final).read_bytes()
    assert [job.scratch(node) for node in job.cluster.nodes] == [[], []]


def test_time_limit(site: Site) -> None:
    """Slurm's own USR1 before the limit -> checkpoint -> requeue -> the rest; only rank 0's node gets the signal."""
    job = site.pretrain("output=runs/limited", "--signal=B:USR1@120")
    job.freeze_at_step(2)
    # BitBERT compiles nothing at run time: no job waits for a compiler, or for another job's lock.
    for rank, node in enumerate(site.cluster.nodes):
        names = {path.name for path in job.scratch(node)}
        assert {f"bitbert-{job.job_id}", f"rank-{rank}", "extensions", "triton"} <= names
        assert not [path for path in job.scratch(node) if path.suffix in (".so", ".o", ".ninja")]
    site.cluster.run("scontrol", "update", f"JobId={job.job_id}", "EndTime=now+90")
    job.wait_until_log_says("USR1: asking the ranks")  # Slurm looks every 30 s
    job.thaw()
    job.wait_until_log_says("requeued to go on from runs/limited/checkpoints/step-0")
    site.cluster.run("scontrol", "update", f"JobId={job.job_id}", "TimeLimit=20")
    assert job.wait_for_end() == "COMPLETED"
    assert "stopped as asked after step" in job.rank_log(0)
    assert "start 1 on n[1-2]" in job.log
    assert "resumed from step-0" in job.rank_log(0)
    assert not (job.run / "STOP").exists()
    assert_same_bits(job)


def test_requeue_by_hand(site: Site) -> None:
    """scontrol requeue, as an administrator does it: TERM to everything; Slurm starts the job again by itself."""
    job = site.pretrain("output=runs/requeued")
    job.freeze_at_step(12)
    site.cluster.run("scontrol", "requeue", job.job_id)
    job.wait_until_log_says("start 1 on")
    assert job.wait_for_end() == "COMPLETED"
    assert "resumed from step-0" in job.rank_log(0)
    assert_same_bits(job)


def test_a_killed_rank_and_a_restarted_controller(site: Site) -> None:
    """The ranks start again inside of the same allocation; the controller is away meanwhile."""
    job = site.pretrain("output=runs/killed")
    job.freeze_at_step(12)
    site.cluster.kill_controller()
    for pid in job.ranks("n2"):
        os.kill(pid, signal.SIGKILL)
    job.thaw()
    site.cluster.start_controller()
    job.wait_until_log_says("starting the ranks again from runs/killed/checkpoints/step-00000010")
    assert job.wait_for_end() == "COMPLETED"
    assert site.cluster.job(job.job_id)["Restarts"] == "0"
    assert "rank-1 ended with exit code 137" in job.log
    assert_same_bits(job)


def test_a_lost_node_that_comes_back(site: Site) -> None:
    """Power off: Slurm finds out, requeues, and the job goes on where the node is back."""
    job = site.pretrain("output=runs/lost")
    job.freeze_at_step(12)
    site.cluster.kill_node("n2")
    job.thaw()
    site.cluster.wait_for_state(job.job_id, "PENDING")
    site.cluster.start_node("n2")
    assert job.wait_for_end() == "COMPLETED"
    assert int(site.cluster.job(job.job_id)["Restarts"]) >= 1
    assert_same_bits(job)


def test_cancelled_stays_cancelled(site: Site) -> None:
    job = site.pretrain("output=runs/cancelled")
    job.freeze_at_step(2)
    site.cluster.run("scancel", job.job_id)
    assert job.wait_for_end() == "CANCELLED"
    time.sleep(6)  # a requeued job would be back after cred_expire, 5 s
    assert site.cluster.job(job.job_id)["JobState"] == "CANCELLED"
    assert "TERM: Slurm ends this job" in job.log
    assert "requeued to go on" not in job.log
    assert not (job.run / "final").exists()


def test_a_mistake_is_not_tried_again(site: Site) -> None:
    """What only the ranks can see, e.g. damaged shards, ends the job with their message at the first start."""
    job = site.pretrain("output=runs/mistaken", "data.heldout=runs/nowhere")
    assert job.wait_for_end() == "FAILED"
    assert site.cluster.job(job.job_id)["ExitCode"] == "2:0"
    assert "error: shard folder 'runs/nowhere'" in job.log
    assert "starting the ranks again" not in job.log


def test_a_crash_that_repeats_ends_the_job(site: Site) -> None:
    """Three starts without a new checkpoint; here the ranks find no scratch to work in."""
    job = site.pretrain("output=runs/crashing", "--export=ALL,NO_SCRATCH=/proc/none")
    assert job.wait_for_end() == "FAILED"
    assert job.log.count("starting the ranks again") == 2
    assert "error: 3 starts in a row brought no new checkpoint" in job.log
    assert "/proc/none" in job.rank_log(0)
