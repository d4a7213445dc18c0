"""`safe-pip` and `python -m safe_pip`."""

import sys

from safe_pip.launch import isolation


def main() -> int:
    """Run the command line; on return its exit status."""
    _begin()

    from safe_pip.cli import main as run

    return run(sys.argv[1:])


def program() -> int:
    """As `main`, for what does nothing else than to exit with its status: it may end the process itself."""
    _begin()

    from safe_pip.launch.leaving import leave  # before anything changes that it could be imported from

    try:
        status = main()
    except SystemExit as end:  # pip's `--version` and `--help`
        if not isinstance(end.code, int | None):
            raise
        status = end.code or 0
    leave(status)
    return status


def _begin() -> None:
    isolation.isolate()
    import gc

    # Until the command begins, modules are imported and hardly anything is garbage; looking for it costs more than all
    # of our own imports. Whoever runs the command enables it again.
    gc.disable()


if __name__ == "__main__":
    sys.exit(program())
