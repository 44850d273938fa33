"""Errors that are meant for people."""


class UsageError(Exception):
    """A mistake of the user: the message names the flag, its value and the remedy.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """
