"""Errors that are meant for people."""


class UsageError(Exception):
    """A mistake of the user: the message names the flag, its value and the remedy.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


class AgreedError(UsageError):
    """A UsageError that every process raises at the same place, so one of them speaks for all."""


class RunFailed(Exception):
    """A failure that is known: its message is printed alone, without a traceback, and the exit status is 1."""
