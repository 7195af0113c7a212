"""A block that joins a relay, or a node job, as an instance like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from helpers import wait_until
from parsl.curvezmq import create_certificates

from parsl_flux_bulk.blocks.packed.node_job_launcher import NodeJobLauncher
from parsl_flux_bulk.blocks.relay.instance import RelayedInstance
from parsl_flux_bulk.blocks.relay.server import RelayServer
from parsl_flux_bulk.errors import InstanceLost, InstanceUnavailable
from parsl_flux_bulk.instances.base import ChannelAddress, Completion, Connection, Event, JobId, PeerId
from parsl_flux_bulk.instances.events import EventQueue, EventSource
from parsl_flux_bulk.instances.federation.federation import Federation
from parsl_flux_bulk.instances.flux.instance import FluxInstance

BLOCK = Path(__file__).resolve().parent.parent / "parsl_flux_bulk" / "blocks" / "block_program.py"
JOIN_BOUND = 60.0
END_BOUND = 60.0


def without_flux() -> dict[str, str]:
    """This process's environment, less what says that it is inside of a Flux instance."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")}


class BlockCompletion:
    """A completion of one block alone: what it pushes is queued here."""

    def __init__(self, block: RelayedInstance) -> None:
        self._queue = EventQueue()
        self._ended = ""
        self._source = block.subscribe(self, 0)

    def push(self, source: EventSource, events: Sequence[Event]) -> None:
        self._queue.put(events)

    def lost(self, source: EventSource, why: str) -> None:
        self._ended = self._ended or why
        self._queue.wake()

    def watch(self, job_id: JobId) -> None:
        self._source.watch(job_id)

    def poll(self, timeout: float | None) -> list[Event]:
        events = self._queue.get(0 if self._ended else timeout)
        if not events and self._ended:
            raise InstanceLost(self._ended)
        return events

    def send(self, peer: PeerId, body: bytes) -> None:
        self._source.send(peer, body)

    def send_from_any_thread(self, peer: PeerId, body: bytes, slot: int | None = None) -> bool:
        return False

    def survey(self) -> None:
        self._source.survey()

    def channel(self) -> ChannelAddress:
        return self._source.address

    def wake(self) -> None:
        self._queue.wake()

    def close(self) -> None:
        self._ended = self._ended or "the completion is closed"
        self._queue.wake()
        self._source.close()


class BlockInstance:
    """A relay, and one block that it is for, started and ended together.

    Parameters
    ----------
    flux : bool
        The block's program is the initial program of ``flux start``, else it runs jobs itself.
    options : list of str
        Of ``flux start``.
    relay : dict
        More of the relay's arguments.
    settings
        More of the block's settings.
    """

    def __init__(
        self,
        flux: bool = False,
        options: list[str] | None = None,
        relay: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self._flux = flux
        self._options = options or []
        self._relay = relay or {}
        self._settings = settings
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._joined = threading.Event()
        self._closed = False
        self.process: subprocess.Popen[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self.server: RelayServer | None = None
        self.block: RelayedInstance | None = None

    @property
    def description(self) -> str:
        return self.block.description if self.block else "a relayed block, not started"

    @property
    def certificates(self) -> Path:
        assert self._directory is not None
        return Path(self._directory.name) / "certificates"

    def start(self) -> None:
        if self._directory is not None:
            return
        self._directory = tempfile.TemporaryDirectory()
        create_certificates(self._directory.name)
        self.server = RelayServer(
            self.certificates,
            self._on_join,
            host="127.0.0.1",
            **self._relay,
        )
        self.start_block()
        assert self.process is not None
        wait_until(
            lambda: self._joined.is_set() or self.process.poll() is not None, JOIN_BOUND, "a block joins"
        )
        if not self._joined.is_set():
            raise InstanceUnavailable(f"the block did not join: {self.said()}")

    def start_block(self) -> None:
        """Start the block's program."""
        assert self._directory is not None and self.server is not None
        path = Path(self._directory.name) / "block.json"
        settings = {
            "addresses": ["127.0.0.1"],
            "port": self.server.port,
            "certificates": str(self.certificates),
            "block_id": "7",
            **self._settings,
        }
        path.write_text(json.dumps(settings))
        command = [sys.executable, str(BLOCK), str(path)]
        if self._flux:
            command = ["flux", "start", *self._options, *command]
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=self.stderr, env=without_flux(), start_new_session=True
        )

    def said(self) -> str:
        """What the block's program wrote to its standard error."""
        assert self.stderr is not None
        self.stderr.seek(0)
        return self.stderr.read().decode()

    def _on_join(self, block: RelayedInstance) -> None:
        self.block = block
        self._joined.set()

    def connect(self) -> Connection:
        return self._started().connect()

    def completion(self) -> Completion:
        return BlockCompletion(self._started())

    def job_name(self, job_id: JobId) -> str:
        return self._started().job_name(job_id)

    def _started(self) -> RelayedInstance:
        if self.block is None:
            raise InstanceLost("not started")
        return self.block

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self.server is not None:
            self.server.close()
        if self.process is not None:
            self.process.wait(END_BOUND)
        if self.stderr is not None:
            self.stderr.close()
        if self._directory is not None:
            self._directory.cleanup()


class NodeJobInstance(Federation):
    """A Flux instance whose one node job gets all jobs, those of several tasks too."""

    def __init__(self) -> None:
        super().__init__()
        self._outer = FluxInstance.own()
        self._launcher: NodeJobLauncher | None = None

    def start(self) -> None:
        if self._launcher is None:
            self._outer.start()
            self._launcher = NodeJobLauncher(self._outer, self.add, self.registry)
            self._launcher.ends_idle = False
            self._launcher.start()
            self._launcher.wait()

    def close(self) -> None:
        super().close()
        if self._launcher is not None:
            self._launcher.stop()
        self._outer.close()
