"""pip for parallel builds: many pip commands on one Python environment at once, each of them all or nothing.

For Python programs there are `locked` and `status`. They are imported when they are used: commands do not need them.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # as `typing` has it, which is not imported before the path is safe
if TYPE_CHECKING:
    from safe_pip.api import AdoptedStatus as AdoptedStatus
    from safe_pip.api import LockStatus as LockStatus
    from safe_pip.api import LockTimeout as LockTimeout
    from safe_pip.api import NestingRefused as NestingRefused
    from safe_pip.api import ProcessStatus as ProcessStatus
    from safe_pip.api import RecoveryNeeded as RecoveryNeeded
    from safe_pip.api import SafePipError as SafePipError
    from safe_pip.api import Status as Status
    from safe_pip.api import TransactionStatus as TransactionStatus
    from safe_pip.api import UnusableEnvironment as UnusableEnvironment
    from safe_pip.api import UsageError as UsageError
    from safe_pip.api import locked as locked
    from safe_pip.api import status as status
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from safe_pip import api

        return getattr(api, name)


__all__ = (
    *("AdoptedStatus", "LockStatus", "LockTimeout", "NestingRefused", "ProcessStatus", "RecoveryNeeded"),
    *("SafePipError", "Status", "TransactionStatus", "UnusableEnvironment", "UsageError", "locked", "status"),
)
