"""States of records, and the transitions between them that are allowed.

::

    class DoorState(State):
        OPEN = "open", "closed"
        CLOSED = "closed", "open", "locked"
        LOCKED = "locked", "closed"

    class Door(Stateful):
        def __init__(self) -> None:
            self.state = DoorState.OPEN

    door.move_to(DoorState.LOCKED)  # IllegalTransition: <Door ...> cannot become locked; ...

The modules of the records draw their transitions.
"""

from __future__ import annotations

import enum
from functools import cached_property


class IllegalTransition(RuntimeError):
    """A record was told to enter a state to which its present state does not lead: a bug."""

    def __init__(self, record: object, before: State, after: State) -> None:
        allowed = ", ".join(map(str, before.successors)) or "none"
        super().__init__(f"{record!r} cannot become {after}; states that may follow: {allowed}")


class State(enum.Enum):
    """A state. Its value: the name, and the names of the states that may follow."""

    def __str__(self) -> str:
        return str(self.value[0])

    @cached_property
    def successors(self) -> tuple[State, ...]:
        """States to which this one may lead."""
        return tuple(state for state in type(self) if str(state) in self.value[1:])


class Stateful:
    """A record that is in one state at a time."""

    __slots__ = ()

    state: State

    def move_to(self, state: State) -> None:
        """Enter a state.

        Raises
        ------
        IllegalTransition
        """
        if state not in self.state.successors:
            raise IllegalTransition(self, self.state, state)
        self.state = state  # type: ignore[misc]  # a slot of every subclass
