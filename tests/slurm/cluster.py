"""A live Slurm of the machine's own packages: one network namespace a node, all below one folder, gone when closed.

Every node has its own address, host name and loopback, so that an address that only works on one machine fails here
too; a node can be killed like a machine that loses power. Daemons run in the foreground as our children.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "ip", "nsenter", "unshare")
_CONTROLLER = "ctl"
_NETWORK = "10.77.0"

# Short times where the defaults are made for big machines: a requeued job waits cred_expire (120 s), a lost node is
# found after SlurmdTimeout (300 s). The nodes' CPUs are fiction (config_overrides).
_CONFIG = """
ClusterName=bitbert
SlurmctldHost={controller}({network}.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
PriorityType=priority/basic
SlurmdParameters=config_overrides
EnforcePartLimits=ALL
ReturnToService=2
SlurmctldTimeout=5
SlurmdTimeout=10
BatchStartTimeout=10
MessageTimeout=5
KillWait=10
JobRequeue=1
MinJobAge=3600
GresTypes=gpu
NodeName=DEFAULT CPUs=8 RealMemory=65536 Gres=gpu:2 State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP
"""


def missing_programs() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program) is None]


def wait_until(
    condition: Callable[[], Any], timeout_s: float, what: Callable[[], str] | str, *, every_s: float = 0.1
) -> Any:
    """Poll ``condition`` until it is true and return its value; the failure says ``what`` was waited for."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what() if callable(what) else what}")
        time.sleep(every_s)


class SlurmCluster:
    """munged, slurmctld and ``num_nodes`` slurmd; a context manager.

    Attributes:
        root: folder of everything that the daemons write.
    """

    def __init__(self, num_nodes: int) -> None:
        self.nodes = [f"n{number}" for number in range(1, num_nodes + 1)]
        # Not pytest's folder: the path of a unix socket holds 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="bitbert-slurm-", dir="/tmp"))
        self._prefix = self.root.name.rsplit("-", 1)[1]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._write_files()
            self._make_network()
            self._start_munge()
            self.start_controller()
            for node in self.nodes:
                self.start_node(node)
            wait_until(lambda: set(self.node_states().values()) == {"idle"}, 60, self._describe)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- what a user does on the login node

    def run(self, *command: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command where users are: in the controller's network, with the cluster's configuration."""
        environment = {**os.environ, "SLURM_CONF": str(self.root / "slurm.conf"), **options.pop("env", {})}
        result = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self._namespace(_CONTROLLER)}", *map(str, command)],
            capture_output=True,
            text=True,
            timeout=options.pop("timeout", 300),
            check=False,
            env=environment,
            **options,
        )
        if check and result.returncode:
            raise AssertionError(f"{command}: exit code {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    def job(self, job_id: str) -> dict[str, str]:
        """Fields of ``scontrol show job``; of the first task for an array."""
        result = self.run("scontrol", "-o", "show", "job", job_id, check=False)
        return dict(re.findall(r"(\S+?)=(\S*)", result.stdout.partition("\n")[0]))

    def wait_for_state(self, job_id: str, *states: str, timeout_s: float = 300) -> dict[str, str]:
        def reached() -> dict[str, str] | None:
            found = self.job(job_id)
            return found if found.get("JobState") in states else None

        return wait_until(reached, timeout_s, lambda: f"job {job_id} is {states}; it is {self.job(job_id)}")

    def node_states(self) -> dict[str, str]:
        lines = self.run("sinfo", "-h", "-p", "main", "-N", "-o", "%N %T", check=False).stdout.splitlines()
        return dict(line.split() for line in lines)

    def cancel_all(self) -> None:
        self.run("scancel", "--user=root", check=False)
        wait_until(lambda: not self.run("squeue", "-h", check=False).stdout, 30, "no jobs")

    # --- what happens to machines

    def pids(self, node: str, pattern: str = "") -> list[int]:
        """Processes on a node whose command line matches ``pattern``; a process that has ended is none."""
        result = subprocess.run(["ip", "netns", "pids", self._namespace(node)], capture_output=True, text=True)
        lines = {pid: _command_line(pid) for pid in map(int, result.stdout.split())}
        return [pid for pid, line in lines.items() if line and re.search(pattern, line)]

    def local_disk(self, node: str) -> Path:
        """The folder ``root/local`` as the node sees it: a disk of its own."""
        return Path(f"/proc/{self._daemons[node].pid}/root{self.root}/local")

    def kill_node(self, node: str) -> None:
        """Power off: every process of the node, its slurmd included, is gone at once."""
        while pids := self.pids(node):
            for pid in pids:
                _signal(pid, signal.SIGKILL)
        self._daemons.pop(node).wait()

    def start_node(self, node: str) -> None:
        script = (
            f"hostname {node}; mount --bind {self.root}/hosts /etc/hosts; mount -t tmpfs none /dev/shm; "
            f"mount -t tmpfs none {self.root}/local; exec slurmd -D -N {node}"
        )
        self._start(node, ["unshare", "--uts", "--mount", "sh", "-c", script], namespace=node)

    def start_controller(self) -> None:
        script = f"hostname {_CONTROLLER}; exec slurmctld -D"
        self._start(_CONTROLLER, ["unshare", "--uts", "sh", "-c", script], namespace=_CONTROLLER)

    def kill_controller(self) -> None:
        daemon = self._daemons.pop(_CONTROLLER)
        daemon.kill()
        daemon.wait()

    # --- up and down

    def close(self) -> None:
        """Cancel jobs, stop daemons, kill what is left on the nodes, remove namespaces and files."""
        if _CONTROLLER in self._daemons and self._daemons[_CONTROLLER].poll() is None:
            with contextlib.suppress(TimeoutError):  # whatever holds the jobs is killed below
                self.cancel_all()
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        for name in (_CONTROLLER, *self.nodes):
            while pids := self.pids(name):
                for pid in pids:
                    _signal(pid, signal.SIGKILL)
            if Path("/run/netns", self._namespace(name)).exists():
                _ip("netns", "del", self._namespace(name))
        shutil.rmtree(self.root, ignore_errors=True)

    def _namespace(self, name: str) -> str:
        return f"bb-{self._prefix}-{name}"

    def _write_files(self) -> None:
        self.root.chmod(0o755)
        spools = [f"spool.{node}" for node in self.nodes]
        for folder in ("munge", "state", "log", "dev", "local", *spools):
            (self.root / folder).mkdir()
        nodes = "\n".join(f"NodeName={node} NodeAddr={self._address(node)}" for node in self.nodes)
        text = _CONFIG.format(root=self.root, controller=_CONTROLLER, network=_NETWORK, nodes=nodes)
        (self.root / "slurm.conf").write_text(text)
        # slurmd wants character devices; these two are /dev/null by other names.
        for number in (0, 1):
            subprocess.run(["mknod", "-m", "666", self.root / "dev" / f"gpu{number}", "c", "1", "3"], check=True)
        (self.root / "gres.conf").write_text(f"Name=gpu File={self.root}/dev/gpu[0-1]\n")
        hosts = ["127.0.0.1 localhost", f"{_NETWORK}.254 {_CONTROLLER}"]
        hosts += [f"{self._address(node)} {node}" for node in self.nodes]
        (self.root / "hosts").write_text("\n".join(hosts) + "\n")
        key = self.root / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))

    def _address(self, node: str) -> str:
        return f"{_NETWORK}.{node[1:]}"

    def _make_network(self) -> None:
        """A bridge in the controller's namespace: nothing appears on the machine's own interfaces."""
        controller = self._namespace(_CONTROLLER)
        _ip("netns", "add", controller)
        _ip("-n", controller, "link", "set", "lo", "up")
        _ip("-n", controller, "link", "add", "br0", "type", "bridge")
        _ip("-n", controller, "addr", "add", f"{_NETWORK}.254/24", "dev", "br0")
        _ip("-n", controller, "link", "set", "br0", "up")
        for node in self.nodes:
            namespace = self._namespace(node)
            _ip("netns", "add", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", controller, "link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("-n", controller, "link", "set", node, "master", "br0", "up")
            _ip("-n", namespace, "addr", "add", f"{self._address(node)}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")

    def _start_munge(self) -> None:
        folder = self.root / "munge"
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in names.items()]
        self._start("munge", ["munged", "-F", "--num-threads=2", *options])

        def answers() -> bool:
            probe = subprocess.run(["munge", "-S", folder / "socket", "-n"], capture_output=True, check=False)
            return probe.returncode == 0

        wait_until(answers, 10, self._describe)

    def _start(self, name: str, command: list[str], namespace: str | None = None) -> None:
        if namespace is not None:
            command = ["nsenter", f"--net=/run/netns/{self._namespace(namespace)}", *command]
        with open(self.root / "log" / f"{name}.out", "ab") as output:
            self._daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C at the terminal is ours to answer
                env={**os.environ, "SLURM_CONF": str(self.root / "slurm.conf")},
            )

    def _describe(self) -> str:
        """Which daemon has ended, what each said last."""
        parts = [f"nodes {self.node_states()}"]
        for name, daemon in self._daemons.items():
            output = (self.root / "log" / f"{name}.out").read_text(errors="replace").splitlines()[-5:]
            parts.append(f"{name}: exit code {daemon.poll()}, {' | '.join(output)}")
        return "; ".join(parts)


def _ip(*arguments: str) -> None:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {result.stderr.strip()}")


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
