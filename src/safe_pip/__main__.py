"""`safe-pip` and `python -m safe_pip`."""

import sys

from safe_pip import isolation


def main() -> int:
    """Run the command line; on return its exit status."""
    isolation.isolate()

    from safe_pip.cli import main as run

    return run(sys.argv[1:])


def program() -> int:
    """As `main`, for what does nothing else than to exit with its status: it may end the process itself."""
    isolation.isolate()

    from safe_pip.leaving import leave  # before anything changes that it could be imported from

    try:
        status = main()
    except SystemExit as end:  # pip's `--version` and `--help`
        if not isinstance(end.code, int | None):
            raise
        status = end.code or 0
    leave(status)
    return status


if __name__ == "__main__":
    sys.exit(program())
