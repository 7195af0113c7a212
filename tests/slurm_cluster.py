"""Run Slurm's own daemons as a private cluster of several nodes on this machine.

All files are below one directory: a munged with its own key, a slurmctld, and a slurmd for each node
(``slurmd -N``), all in the foreground, on free ports of the loopback interface. ``SLURM_CONF`` names the
configuration, so that the machine's own Slurm, if it has one, is not used. A guard process kills what is
left when the tests end, however they end.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import helpers

PARTITION = "pdebug"

START_BOUND = 60.0
"""Seconds that the cluster may take until all its nodes are idle."""

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
# What a container has no rights for (control groups, accounting) stays off. Tasks are bound to
# cores, as most sites do it.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
PlugStackConfig=/dev/null
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Nodes are what this file says, not what the machine has.
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.%n.log
{nodes}
PartitionName={partition} Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
    "CPUs={cores} Sockets=1 CoresPerSocket={cores} ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN"
)

GUARD = """\
import os, signal, sys
sys.stdin.read()
mark = os.fsencode(sys.argv[1])
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if mark in file.read().split(bytes(1)):
                os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""
"""Waits for the end of its stdin, then kills every process that was started with a variable set so."""


@functools.lru_cache(maxsize=1)
def slurm_missing() -> str:
    """Why a Slurm cluster cannot be run here, or "" if it can."""
    for command in ("munged", "slurmctld", "slurmd", "srun", "sbatch", "salloc"):
        if _find(command) is None:
            return f"no `{command}` (Debian: apt-get install slurm-wlm)"
    return "" if os.geteuid() == 0 else "slurmd starts jobs as root only"


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster.

    Attributes
    ----------
    nodes : list of str
        Names of its nodes, all in the partition ``PARTITION``.
    cores_per_node : int
    environment : dict
        What a process needs in its environment to use it.
    """

    nodes: list[str]
    cores_per_node: int
    environment: dict[str, str]

    def run(self, *command: str, bound: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command with the cluster's environment to its end; the test fails after `bound` s."""
        return subprocess.run(
            command, env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=bound, check=False,
        )  # fmt: skip

    def jobs(self) -> list[str]:
        """Ids of the jobs that wait, run or are about to end."""
        return self.run("squeue", "--noheader", "--format=%i").stdout.split()


@contextmanager
def slurm_cluster(directory: Path, nodes: int = 3) -> Iterator[SlurmCluster]:
    """Run a cluster for the time of a ``with`` block.

    Parameters
    ----------
    directory : Path
        An empty one, with a path short enough for a Unix socket in it.
    nodes : int
        How many nodes. Each has all the cores of this machine.
    """
    host, cores = socket.gethostname().partition(".")[0], len(os.sched_getaffinity(0))
    names = [f"n{number}" for number in range(1, nodes + 1)]
    controller_port, *node_ports = _free_ports(nodes + 1)
    configuration = directory / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=host, directory=directory, controller_port=controller_port, partition=PARTITION,
            nodes="\n".join(
                NODE.format(name=name, host=host, port=port, cores=cores)
                for name, port in zip(names, node_ports, strict=True)
            ),
        )
    )  # fmt: skip
    for path in (directory / "state", *(directory / f"spool.{name}" for name in names)):
        path.mkdir()
    environment = {"SLURM_CONF": str(configuration)}
    cluster = SlurmCluster(names, cores, environment)
    with ExitStack() as running:
        running.enter_context(_guard(environment))
        running.enter_context(_munge(directory, environment))
        running.enter_context(_daemon(directory, ["slurmctld", "-D", "-c"], environment))
        for name in names:
            running.enter_context(_daemon(directory, ["slurmd", "-D", "-N", name], environment))

        def idle() -> bool:
            states = cluster.run("sinfo", "--noheader", "--Node", "--format=%t").stdout.split()
            return states == ["idle"] * nodes

        helpers.wait_until(idle, START_BOUND, f"{nodes} idle nodes; logs are in {directory}")
        try:
            yield cluster
        finally:
            cluster.run("scancel", "--user=root")
            # slurmd does not end its jobs when it ends itself.
            helpers.wait_until(lambda: not cluster.jobs(), 60, "all jobs of the cluster have ended")


@contextmanager
def _guard(environment: dict[str, str]) -> Iterator[None]:
    """Kills what is left at the end: slurmd's job steps outlive slurmd, and a killed test ends nothing."""
    ((name, value),) = environment.items()
    process = subprocess.Popen(
        [sys.executable, "-c", GUARD, f"{name}={value}"], stdin=subprocess.PIPE, start_new_session=True
    )
    helpers.LONG_LIVED.add(process.pid)
    try:
        yield
    finally:
        process.communicate(timeout=30)
        helpers.LONG_LIVED.discard(process.pid)


@contextmanager
def _munge(directory: Path, environment: dict[str, str]) -> Iterator[None]:
    """A munged of our own; Slurm's daemons authenticate each other through it."""
    key = directory / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    command = ["munged", "--foreground", "--force", "--num-threads=1"]
    command += [f"--{file}-file={directory}/munge.{file}" for file in ("key", "pid", "seed", "log")]
    command += [f"--socket={directory}/munge.socket"]
    with _daemon(directory, command, environment):
        helpers.wait_until((directory / "munge.socket").exists, START_BOUND, "munged listens")
        yield


@contextmanager
def _daemon(directory: Path, command: Sequence[str], environment: dict[str, str]) -> Iterator[None]:
    """Run a daemon in the foreground for the time of a ``with`` block."""
    name = re.sub(r"\W+", "-", " ".join(command[:1] + command[3:4]))
    with open(directory / f"{name}.out", "wb") as output:
        process = subprocess.Popen(
            [str(_find(command[0])), *command[1:]],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    helpers.LONG_LIVED.add(process.pid)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        helpers.LONG_LIVED.discard(process.pid)


def _find(command: str) -> str | None:
    """Daemons are in directories that only root has on PATH."""
    return shutil.which(command) or shutil.which(command, path="/usr/sbin:/usr/local/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    """Return ports that no connection is given by the kernel until a daemon listens there."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1000):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found
