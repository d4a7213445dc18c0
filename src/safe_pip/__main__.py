"""`safe-pip` and `python -m safe_pip`.

Nothing else may be imported before `isolate`, so the rest is imported in `main`.
"""

import sys

from safe_pip.launch import isolation


def main() -> int:
    """Run the command line; on return its exit status."""
    isolation.isolate()
    import gc

    # Until the command begins (`fast_start`); looking for garbage costs more than importing all of our own modules.
    gc.disable()
    from safe_pip.cli import main as run
    from safe_pip.fs import watch
    from safe_pip.launch.fast_start import leave  # the command may replace this file

    try:
        status = run(sys.argv[1:])
    except SystemExit as end:  # pip's `--version` and `--help`
        if not isinstance(end.code, int | None):
            raise
        status = end.code or 0
    watch.note("exit", lambda: {"status": status})
    leave(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
