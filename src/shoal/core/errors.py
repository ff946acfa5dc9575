"""Every error that Shoal raises on purpose.

    ShoalError              exit 1   something failed
    ├── InputError          exit 2   what the user gave is wrong: file, value, folder
    │   ├── RecipeError              a recipe's key, type or value
    │   └── CorpusError              a corpus, its shards or its manifest
    ├── CheckpointError     exit 1   a checkpoint can't be written, or none whole can be read
    ├── RankError           exit 1   a rank failed, and its message
    └── Interrupted         exit 130 SIGINT or SIGTERM, after everything was saved

A message says what was wrong, where, and what to do. `cli` prints it without a traceback and exits with its code.
"""


class ShoalError(Exception):
    """Something failed; the message is meant for the user."""

    exit_code = 1


class InputError(ShoalError):
    """What the user gave can't be used."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe has a wrong key, type or value."""


class CorpusError(InputError):
    """A corpus is missing, damaged, or another than expected."""


class CheckpointError(ShoalError):
    """A checkpoint can't be written, or no whole one can be read."""


class RankError(ShoalError):
    """A rank failed; carries that rank's own message."""


class Interrupted(ShoalError):
    """The user, or the system, asked for a stop; all is saved."""

    exit_code = 130
