"""End all processes of a session: a broker, its shells and their tasks."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from parsl_flux_bulk.instances.flux.lifeline import Guard

_WATCH = """
runs() {
    read -r line <"/proc/$1/stat" || return 1
    set -- ${line##*) }
    [ "$1" != Z ]
}
read -r _ && exit
end=0
while runs "$1" && [ $end -lt "$2" ]; do sleep 1; end=$((end + 1)); done
for stat in /proc/[0-9]*/stat; do
    read -r line <"$stat" || continue
    pid=${line%% *}
    set -- "$1" "$2" ${line##*) }
    [ "$6" = "$1" ] && [ "$pid" != "$$" ] && kill -KILL "$pid"
done
"""
"""Waits for the end of the user's process, then gives the session some seconds to end by itself.

A leader that is a zombie has ended: where the first process of a container reaps no orphans, it remains one.
"""


class SessionGuard(Guard):
    """Kills a session that outlives this process, also if this process is killed.

    Parameters
    ----------
    session : int
        Process id of the session's leader.
    grace : float
        Seconds that the session has to end by itself.
    """

    def __init__(self, session: int, grace: float) -> None:
        super().__init__(_WATCH, str(session), str(int(grace)))


def kill_session(leader: int, bound: float = 5.0) -> None:
    """Kill all processes of a session, and those that they start meanwhile; bounded in time."""
    deadline = time.monotonic() + bound
    while (left := _members(leader)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _members(session: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, _, _, sid = file.read().rpartition(b")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            if int(sid) == session and state != b"Z":
                found.append(int(name))
    return found
