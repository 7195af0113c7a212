"""The program of a node job: serves the user's process with an embedded instance on the job's cores.

Run by path. The records of :mod:`..relay` travel over Flux's overlay network, as the messages of workers do:
no port is opened. The program ends when the user's process says so or has ended, and kills its jobs then.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections import deque
from typing import cast

if __name__ == "__main__" and not __package__:
    # Run by path: import from the package, not from this directory.
    _directory = os.path.dirname(os.path.abspath(__file__))
    if sys.path[:1] == [_directory]:
        del sys.path[0]
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(_directory))))

from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.blocks.relay.client import BlockRelay
from parsl_flux_bulk.errors import InstanceError
from parsl_flux_bulk.instances.base import Connection
from parsl_flux_bulk.instances.local.client import LocalConnection, LocalInstance
from parsl_flux_bulk.protocol import frames, instance_uri, variables
from parsl_flux_bulk.protocol.wakeup import Wakeup
from parsl_flux_bulk.worker import handshake
from parsl_flux_bulk.worker.channel import Channel, ChannelLost

IDS_OF_A_NODE = 10**8
"""The jobs of each node job have ids in a range of their own, because jobs may name files by their ids."""


class ChannelTransport:
    """A channel that one thread uses; see :class:`..relay.client.Transport`.

    What other threads send waits until that thread wakes, and leaves in one message.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._wakeup = Wakeup()
        self._unsent: deque[protocol.Record] = deque()
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)
        self._poll.register(self._wakeup, select.POLLIN)

    def send(self, records: list[protocol.Record]) -> None:
        self._unsent.extend(records)
        self._wakeup.wake()

    def wake(self) -> None:
        self._wakeup.wake()

    def wait(self) -> None:
        timeout = self._channel.timeout()
        self._poll.poll(None if timeout is None else timeout * 1000)
        self._wakeup.clear()

    def receive(self) -> list[protocol.Record]:
        self._flush()
        return [
            (kind, end, what, bytes(body))
            for message in self._channel.receive()
            for kind, end, what, body in frames.decode(message)
        ]

    def ended(self) -> bool:
        return False  # `receive` raises ChannelLost.

    def close(self, linger: float) -> None:
        try:
            self._flush()
            self._channel.flush(linger)
        except ChannelLost:
            pass
        self._channel.close()

    def _flush(self) -> None:
        if self._unsent:
            self._channel.send(protocol.pack_message(self._take_unsent()))

    def _take_unsent(self) -> list[protocol.Record]:
        return [self._unsent.popleft() for _ in range(len(self._unsent))]


def _jobs_with_output(connection: Connection) -> int:
    return cast("LocalConnection", connection).jobs_with_output()


def main() -> int:
    """Run the program; return its exit status."""
    environ = dict(os.environ)
    number = int(environ[variables.TOKEN])
    instance = LocalInstance(
        cores=int(environ[variables.CORES]),
        gpus=int(environ[variables.GPUS]),
        oversubscribe=True,  # the instance may be configured with more cores than the node has CPUs
        first_id=number * IDS_OF_A_NODE + 1,
        flux_uri=instance_uri.NO_INSTANCE_PACKED,
    )
    try:
        instance.launch()
        channel = handshake.introduce(environ)  # the user's process and the server get ready together
        instance.start()
        relay = BlockRelay(instance, ChannelTransport(channel), {"kept": _jobs_with_output})
        signal.signal(signal.SIGTERM, lambda *_: relay.end("it got SIGTERM", 1))
        end = relay.serve()
    except (InstanceError, ChannelLost) as error:
        print(f"node job: {error}", file=sys.stderr)
        return 1
    finally:
        instance.close()
    if end.status:
        print(f"node job: {end}", file=sys.stderr)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
