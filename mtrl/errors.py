"""The one exception for mistakes that the user can mend."""


class UserError(Exception):
    """Something the user asked for cannot be done.

    The message is one line that names the argument, the value found and the remedy. Scripts print
    it without a traceback and exit with code 2.
    """
