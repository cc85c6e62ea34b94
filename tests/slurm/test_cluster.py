"""The test bed itself: what it starts, it ends."""

import subprocess
from pathlib import Path

from tests.slurm.cluster import SlurmCluster, wait_until


def test_nothing_is_left_behind(cluster: SlurmCluster, tmp_path: Path) -> None:
    """A second cluster beside the session's, with a job whose child hides from Slurm (two forks, a session)."""
    with SlurmCluster(1) as second:
        script = tmp_path / "job.sh"
        script.write_text("#!/bin/bash\n(setsid sleep 1234 &)\nsleep 1234\n")
        second.run("sbatch", "--time=5", f"--output={tmp_path}/log", script)
        pids = wait_until(lambda: len(found := second.pids("n1", "^sleep 1234")) == 2 and found, 20, "two sleeps")
        root, namespaces = second.root, [second._namespace(name) for name in ("ctl", "n1")]
    assert not root.exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not [name for name in namespaces if name in listed]
    assert set(cluster.node_states().values()) == {"idle"}
