"""Exceptions whose message is all that a user needs to see."""


class UserError(Exception):
    """Something the user asked for cannot be done.

    The message is one line that names the argument, the value found and the remedy. Scripts print
    it without a traceback and exit with code 2.
    """


class RunError(Exception):
    """A run cannot go on, though nothing was wrong with what was asked for.

    The message is one line that says what happened and how to go on. Scripts print it without a
    traceback and exit with code 1.
    """
