"""Run one safe-pip in this process and note where its time goes: `python _phases.py FILE START ARGUMENTS`.

START is when it was started (`time.perf_counter()`, which is the machine's on Linux). FILE gets a JSON object: seconds
by phase, each without those within it. It is run by the interpreter of the environment.
"""

import atexit
import functools
import importlib
import json
import sys
from time import perf_counter

FILE, START, *ARGUMENTS = sys.argv[1:]

PHASES = {
    "reading what is installed": ["environment.transaction:Transaction.read"],
    "making the stage": ["environment.transaction:Transaction.staging"],
    "mirroring directories": [
        "pip_seams.wheels:WheelStaging._stage_scheme",
        "pip_seams.wheels:WheelStaging._mirror_below",
    ],
    "finding what is prepared": ["pip_seams.install:Install._prepare"],
    "hashing wheels": ["store.prepare:Preparing._key"],
    "unpacking, verifying": ["store.unpack:Unpacking._unpack"],
    "compiling": ["store.unpack:compile_sources"],
    "hashing bytecode": ["store.unpack:Unpacking._compile"],
    "copying from the store": ["store.wheels:Entry.copy"],
    "comparing with the archive": ["pip_seams.wheels:_arranged"],
    "pip's own staging": ["pip_seams.wheels:WheelStaging._install"],
    "verifying what pip unpacked": ["pip_seams.wheels:verify"],
    "planning, commit": ["environment.transaction:Transaction.commit"],
    "deleting the stage": ["environment.stage:Stage.close"],
}

seconds: dict[str, float] = {"start of the interpreter": perf_counter() - float(START)}
stack = ["importing safe-pip"]
since = perf_counter()


def switch() -> None:
    """Count the time since the last switch for the phase that is going on."""
    global since
    now = perf_counter()
    seconds[stack[-1]] = seconds.get(stack[-1], 0.0) + now - since
    since = now


def timed(phase, function):
    """Wrap the function so that its time is recorded."""

    @functools.wraps(function)
    def wrapper(*arguments, **keywords):
        switch()
        stack.append(phase)
        try:
            return function(*arguments, **keywords)
        finally:
            switch()
            stack.pop()

    return wrapper


def wrap(phase: str, place: str) -> None:
    """Time one function of safe-pip from now on; raises `AttributeError` if it has another name by now."""
    module, _, path = place.partition(":")
    owner = importlib.import_module(f"safe_pip.{module}")
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    setattr(owner, name, timed(phase, getattr(owner, name)))


def write() -> None:
    """Write the recorded times."""
    switch()
    with open(FILE, "w") as file:
        json.dump(seconds, file)


def run() -> int:
    """Run safe-pip; its seams are wrapped when pip can be imported and before it installs."""
    from safe_pip.launch import isolation

    isolation.isolate()
    from safe_pip.cli import main
    from safe_pip.pip_seams import seams

    preload = seams.preload

    def wrap_all() -> None:
        for phase, places in PHASES.items():
            for place in places:
                wrap(phase, place)
        preload()

    seams.preload = wrap_all
    switch()
    stack[:] = ["pip: start, resolving, its own words"]
    sys.argv[:] = ["safe-pip", *ARGUMENTS]
    return main(ARGUMENTS)


if __name__ == "__main__":
    atexit.register(write)
    sys.exit(run())
