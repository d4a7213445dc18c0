"""Every error that safe-pip reports by itself: what happened, its exit status, and the state it leaves behind.

Exit statuses follow sysexits(3) where it has one. No error derives from `OSError`: pip reports every `OSError` that
passes through its install command as its own ("Could not install packages due to an OSError").
"""

import enum

NO_WORKING_DIRECTORY = "the working directory was removed"


class State(enum.Enum):
    """What is true of the environment when an error is shown."""

    UNCHANGED = "Nothing was changed"
    RESTORED = "The previous versions are in place"
    COMMITTED = "The change was made"
    UNFINISHED = "Half-applied: run `safe-pip doctor --repair`"
    UNKNOWN = "The change was made whole or not at all: `safe-pip list` tells which"


class SafePipError(Exception):
    """The root of all errors.

    `message` is one line without a full stop, names in back quotes; `hint` says what the user can do; `output` is what
    a program printed that failed. `code` is the name of the class in lower case with hyphens.
    """

    code = "error"
    exit_status = 1
    state: State | None = State.UNCHANGED

    def __init_subclass__(cls, exit_status: int | None = None) -> None:
        cls.exit_status = exit_status or cls.exit_status
        cls.code = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in cls.__name__)[1:]

    def __init__(self, message: str, output: str = "", *, hint: str | None = None, state: State | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.output = output
        self.hint = hint
        if state is not None:
            self.state = state

    def __str__(self) -> str:
        """The whole line that is shown behind `safe-pip: error: `."""
        return ". ".join(part for part in (self.message, self.state and self.state.value, self.hint) if part)


class UsageError(SafePipError, exit_status=2):
    """The command line cannot be run (2, as pip and argparse have it)."""


class LockTimeout(SafePipError, exit_status=75):
    """A lock was not granted within the time the user allowed (EX_TEMPFAIL)."""


class NestingRefused(SafePipError, exit_status=75):
    """A lock of an ancestor forbids what this command needs; waiting would never end (EX_TEMPFAIL)."""


class StalePlan(SafePipError, exit_status=75):
    """The environment changed since the snapshot in a way the plan depends on (EX_TEMPFAIL after the last attempt)."""

    def __init__(self, projects: "tuple[str, ...]", message: str | None = None) -> None:
        names = ", ".join(f"`{name}`" for name in projects)
        super().__init__(message or f"{names} changed while this command was at work")
        self.projects = projects


class TakenOver(SafePipError, exit_status=75):
    """The locks of this command were freed while it was at work: other commands undo its change (EX_TEMPFAIL)."""

    def __init__(self, why: str = "another command took this one for dead, and has undone what it had begun") -> None:
        super().__init__(why, hint="Run it again")


class Replaced(SafePipError, exit_status=75):
    """safe-pip itself was replaced on disk before all of it was loaded: the command begins again (EX_TEMPFAIL)."""


class Mismatch(SafePipError):
    """A wheel is not what its RECORD says, or was not unpacked as it is (1, as pip has it for a wheel it rejects)."""


class ImportFailed(SafePipError):
    """A new module cannot be imported (1); `output`: the last lines that the import printed."""


class NotMade(SafePipError):
    """The `venv` module could not make an environment (1); `output`: what it printed."""


class OtherPython(SafePipError):
    """The environment that exists is one of another Python than was asked for (1)."""


class Unmergeable(SafePipError):
    """What is staged cannot be put there, or removed, as the user asked (1, as `cp` has it)."""


class CommitFailed(SafePipError, exit_status=74):
    """The disk refused an operation of the commit (EX_IOERR)."""

    state = State.RESTORED


class RecoveryNeeded(SafePipError, exit_status=76):
    """An unfinished transaction is in the way and cannot be undone by this command (EX_PROTOCOL)."""


class UnusableEnvironment(SafePipError, exit_status=78):
    """The environment cannot be worked on: missing, unreadable, unlockable, or not what it says it is (EX_CONFIG)."""


class CannotLock(UnusableEnvironment):
    """What has to be locked is on a filesystem that has no locks to give."""


class MergeRefused(UnusableEnvironment):
    """Something in the way of an install belongs to no distribution that goes: pip could not install it either."""
