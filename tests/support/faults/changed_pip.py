"""Runs safe-pip with a pip in which one seam is not as expected: `changed_pip.py MODULE ATTRIBUTE ARGS...`.

The name works as it did, so pip does too, but takes its parameters in another form. ATTRIBUTE `-` changes nothing;
MODULE `fcntl` hides that module from us, as if there were none on this platform.

`changed_pip.py serve MODULE...` imports these modules of pip, and runs a command for each line of standard input,
a JSON list `[MODULE, ATTRIBUTE, ARGS...]`, in a child of its own. It prints `[STATUS, STDOUT, STDERR]`. A command that
would start again, with all of pip under one lock, ends with the status `FALLS_BACK`.
"""

import json
import os
import sys
import tempfile

FALLS_BACK = 123


def change(module_name: str, attribute: str) -> None:
    import importlib
    import inspect

    owner = importlib.import_module(module_name)
    *classes, name = attribute.split(".")
    for part in classes:
        owner = getattr(owner, part)
    found = inspect.getattr_static(owner, name)
    is_wrapped = isinstance(found, staticmethod | classmethod)
    function = found.__func__ if is_wrapped else found

    def changed(*args, **kw):
        return function(*args, **kw)

    setattr(owner, name, type(found)(changed) if is_wrapped else changed)


def change_when_frozen(module: str, attribute: str) -> None:
    """Have the seam changed as soon as it is known which pip runs."""
    from safe_pip.launch import frozen_pip

    freeze = frozen_pip.freeze

    def freeze_and_change(*args, **kw):
        copy = freeze(*args, **kw)
        sys.path.append(str(copy.path))
        change(module, attribute)
        sys.path.remove(str(copy.path))
        return copy

    frozen_pip.freeze = freeze_and_change


def serve(modules: list[str]) -> None:
    import importlib

    from safe_pip.launch import frozen_pip, isolation

    isolation.isolate()
    copy = frozen_pip.freeze(isolation.environment_path)
    sys.path.append(str(copy.path))
    for module in modules:
        importlib.import_module(module)
    sys.path.remove(str(copy.path))
    importlib.import_module("safe_pip.cli")
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                run_and_end(*json.loads(line))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            out.seek(0)
            err.seek(0)
            print(json.dumps([status, out.read().decode(), err.read().decode()]), flush=True)


def run_and_end(module: str, attribute: str, *args: str) -> None:
    from safe_pip.cli import main as run
    from safe_pip.launch.restart import Attempt

    def end(status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def reexec(attempt, start):
        end(FALLS_BACK if attempt.is_fallback else 1)

    Attempt.reexec = reexec  # type: ignore[method-assign,assignment]
    if attribute != "-":
        change_when_frozen(module, attribute)
    status = 99
    try:
        status = run(list(args))
    finally:
        end(status)


def main() -> int:
    module, attribute = sys.argv[1:3]
    sys.argv[0] = "safe-pip"
    if module == "serve":
        serve(sys.argv[2:])
        return 0
    del sys.argv[1:3]
    from safe_pip.launch import isolation

    isolation.isolate()
    if module == "fcntl":
        sys.modules["fcntl"] = None  # type: ignore[assignment]
        import safe_pip.locking.flock

        assert not safe_pip.locking.flock.supported
        del sys.modules["fcntl"]  # filelock locks by what the platform has; here that is fcntl
    if attribute != "-":
        change_when_frozen(module, attribute)
    from safe_pip.cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
