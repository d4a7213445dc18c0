"""For Python programs: the lock of an environment around a block, and what `safe-pip status` tells.

`safe_pip` has these names too, and imports this module when one of them is used.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from safe_pip.commands import environments
from safe_pip.commands.environments import Context, Place
from safe_pip.commands.status import AdoptedStatus as AdoptedStatus
from safe_pip.commands.status import LockStatus as LockStatus
from safe_pip.commands.status import ProcessStatus as ProcessStatus
from safe_pip.commands.status import Status as Status
from safe_pip.commands.status import TransactionStatus as TransactionStatus
from safe_pip.commands.status import examine
from safe_pip.errors import LockTimeout as LockTimeout
from safe_pip.errors import NestingRefused as NestingRefused
from safe_pip.errors import RecoveryNeeded as RecoveryNeeded
from safe_pip.errors import SafePipError as SafePipError
from safe_pip.errors import UnusableEnvironment as UnusableEnvironment
from safe_pip.errors import UsageError as UsageError
from safe_pip.launch import settings
from safe_pip.messages import Reporter

Named = str | os.PathLike[str] | None


@contextmanager
def locked(
    env: Named = None,
    *,
    shared: bool = True,
    keep: Collection[str] = (),
    timeout: float | None = None,
    lock_dir: Named = None,
    quiet: bool = False,
) -> Iterator[None]:
    """Hold the lock of an environment during a `with` block, as `safe-pip run` does while its command runs.

    :param env: a virtual environment, its Python, or a prefix; None: the environment of the running Python.
    :param shared: True: what is installed is neither changed nor removed meanwhile; other programs share the lock, and
        may add distributions. False: no other command uses the environment.
    :param keep: names of distributions: of what is installed only these and what they require are neither changed nor
        removed meanwhile, as by `safe-pip run --keep`; none: all. With `shared` only.
    :param timeout: the seconds to wait for the lock; 0: do not wait; None: as long as the setting `lock-timeout` says,
        without it for ever.
    :param lock_dir: lock this directory, whatever it is, instead of an environment; it is made if it is missing.
    :param quiet: do not tell on standard error which command is waited for.
    :raises LockTimeout: the lock was not granted in time.
    :raises NestingRefused: what this block is part of only shares the lock, and `shared` is False.
    :raises UnusableEnvironment: `env` is no environment, cannot be locked by this user, or lacks what `keep` names.
    :raises RecoveryNeeded: a change was left unfinished that this user cannot undo.
    """
    if env is not None and lock_dir is not None:
        raise TypeError("`env` and `lock_dir` exclude each other")
    if isinstance(keep, str) or (keep and (lock_dir is not None or not shared)):
        raise TypeError("`keep` is a list of names, without `lock_dir`, and with `shared`")
    context = _context(quiet=quiet, timeout=timeout)
    with environments.locked(context, _path(env), _path(lock_dir), exclusive=not shared, keep=keep):
        yield


def status(env: Named = None) -> Status:
    """Tell what `safe-pip status --json` prints of an environment. It takes no lock and changes nothing.

    :param env: a virtual environment, its Python, a prefix or a `--target` directory; None: that of the running Python.
    :raises UnusableEnvironment: `env` is no environment.
    """
    return examine(Place.find(_path(env), _context()))


def _path(named: Named) -> str | None:
    if named is None:
        return None
    if not (path := os.fspath(named)):
        raise UnusableEnvironment("the path of the environment is empty")
    return path


def _context(*, quiet: bool = False, timeout: float | None = None) -> Context:
    chosen = settings.load(os.environ)
    if timeout is not None:
        chosen = chosen._replace(lock_timeout=settings.seconds(str(timeout), "timeout"))
    return Context(chosen, Reporter(quiet=quiet))
