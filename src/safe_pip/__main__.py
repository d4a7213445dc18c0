"""`safe-pip` and `python -m safe_pip`."""

import sys

from safe_pip import isolation


def main() -> int:
    """Run the command line; on return its exit status."""
    isolation.isolate()

    from safe_pip.cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
