"""The exceptions that users see as a message instead of a traceback.

First in the import order. Anything that a user can cause (a wrong key, a missing band, a full disk) is raised as
``UserError``: what was wrong, the value, where, and what to do next. The command line prints it and exits with 2;
of ``Interrupted`` with 130.
"""


class UserError(Exception):
    """A mistake in the input, worded for the person who made it.

    The message says what was wrong, which value, where, and what to do next.
    """


class Interrupted(UserError):
    """Ctrl-C in a command that stopped resumably: what is kept, and how to go on."""
