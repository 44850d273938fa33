"""Whether a parameter's rule has its basis, or whatever its first refresh makes, and when it was last refreshed."""

from __future__ import annotations

from collections.abc import Callable

from .rule import UpdateRule


class RefreshState:
    """What is known of one parameter's refreshes; the same on every process that shares the parameter.

    initialised: whether a refresh has succeeded; None where the state has to be asked. tried_for: the update that the
    last refresh was for, counted from 1; 0 for none.
    """

    def __init__(self, rule: UpdateRule) -> None:
        self.rule = rule
        self.initialised: bool | None = None
        self.tried_for = 0

    def forget(self) -> None:
        """Ask the state again: it may be another one."""
        self.initialised, self.tried_for = None, 0

    def wanted(self, update: int, offset: int, ask: Callable[[], bool]) -> bool:
        """Whether the rule wants a refresh before this update. ask: what the state says of `initialised`."""
        if self.initialised is None:
            self.initialised = ask()
        return not self.initialised or self.rule.refresh_due(update, offset)

    def note(self, update: int, succeeded: bool) -> None:
        """Record that the refresh before this update has been tried."""
        self.initialised = succeeded or bool(self.initialised)
        self.tried_for = update if self.initialised else 0

    @property
    def ready(self) -> bool:
        """Whether an update can be made."""
        return not self.rule.refreshes or bool(self.initialised)
