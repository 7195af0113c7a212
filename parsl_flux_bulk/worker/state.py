"""Base of the state machines of managers and workers."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """A state, whose value lists the names of the allowed next states."""

    def to(self, state: State) -> None:
        """Check a transition.

        Raises
        ------
        RuntimeError
            The transition is not allowed.
        """
        if state.name not in self.value.split():
            raise RuntimeError(f"{type(self).__name__}: {self.name} -> {state.name} is not allowed")
