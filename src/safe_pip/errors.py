"""Every error that safe-pip reports by itself: what happened, its exit status, and the state it leaves behind.

Exit statuses follow sysexits(3) where it has one. None of these derives from `OSError`: pip reports every `OSError`
that passes through its install command as its own ("Could not install packages due to an OSError").
"""

import enum


class State(enum.Enum):
    """What is true of the environment when an error is shown."""

    UNCHANGED = "Nothing was changed"
    RESTORED = "The previous versions are in place"
    COMMITTED = "The change was made"
    UNFINISHED = "Half-applied: run `safe-pip doctor --repair`"


class SafePipError(Exception):
    """The root of all errors: `message`, and optionally what the user can do about it.

    `message` is one line without a full stop, names in back quotes.
    """

    code = "error"
    exit_status = 1
    state: State | None = State.UNCHANGED

    def __init__(self, message: str, *, hint: str | None = None, state: State | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if state is not None:
            self.state = state

    def __str__(self) -> str:
        """The whole line that is shown behind `safe-pip: error: `."""
        return ". ".join(part for part in (self.message, self.state and self.state.value, self.hint) if part)


class UsageError(SafePipError):
    """The command line is not one that can be run (EX_USAGE is 64; pip and argparse use 2)."""

    code = "usage"
    exit_status = 2


class LockTimeout(SafePipError):
    """A lock was not granted within the time the user allowed (EX_TEMPFAIL)."""

    code = "lock-timeout"
    exit_status = 75


class NestingRefused(SafePipError):
    """What an ancestor of this process holds forbids what this command needs; waiting would never end (EX_TEMPFAIL)."""

    code = "nesting-refused"
    exit_status = 75


class StalePlan(SafePipError):
    """The environment changed since the snapshot in a way the plan depends on (EX_TEMPFAIL after the last attempt)."""

    code = "stale-plan"
    exit_status = 75

    def __init__(self, projects: "tuple[str, ...]", message: str | None = None) -> None:
        names = ", ".join(f"`{name}`" for name in projects)
        super().__init__(message or f"{names} changed while this command was at work")
        self.projects = projects


class Replaced(SafePipError):
    """safe-pip itself was replaced on disk before all of it was loaded: the command begins again (EX_TEMPFAIL)."""

    code = "replaced"
    exit_status = 75


class Mismatch(SafePipError):
    """What a wheel was unpacked to is not what its RECORD says (1, as pip has for a wheel that it cannot install)."""

    code = "mismatch"


class ImportFailed(SafePipError):
    """What is new cannot be imported (1, as for a wheel that is damaged); `output`: the last lines that it printed."""

    code = "import-failed"

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class NotMade(SafePipError):
    """The `venv` module could not make an environment (1, as it has it itself); `output`: what it printed."""

    code = "not-made"

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class OtherPython(SafePipError):
    """The environment that is there is one of another Python than was asked for (1)."""

    code = "other-python"


class Unmergeable(SafePipError):
    """What was staged cannot be put there, or taken away, as it was asked for (1, as `cp` has it)."""

    code = "unmergeable"


class CommitFailed(SafePipError):
    """The disk refused an operation of the commit (EX_IOERR)."""

    code = "commit-failed"
    exit_status = 74
    state = State.RESTORED


class RecoveryNeeded(SafePipError):
    """An unfinished transaction is in the way and cannot be undone by this command (EX_PROTOCOL)."""

    code = "recovery-needed"
    exit_status = 76


class UnusableEnvironment(SafePipError):
    """The environment cannot be worked on: missing, unreadable, unlockable, or not what it says it is (EX_CONFIG)."""

    code = "unusable-environment"
    exit_status = 78


class MergeRefused(UnusableEnvironment):
    """Something is in the way of what is to be installed and belongs to nobody who leaves: no pip could do it."""

    code = "merge-refused"
