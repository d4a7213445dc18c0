"""Runs safe-pip with a pip in which one seam is not as expected: `changed_pip.py MODULE ATTRIBUTE ARGS...`.

The name works as it did, so pip does too, but takes its parameters in another form. ATTRIBUTE `-` changes nothing;
MODULE `fcntl` hides that module from us, as if there were none on this platform.
"""

import sys


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


def main() -> int:
    module, attribute = sys.argv[1:3]
    del sys.argv[1:3]
    sys.argv[0] = "safe-pip"
    from safe_pip.launch import isolation

    isolation.isolate()
    if module == "fcntl":
        sys.modules["fcntl"] = None  # type: ignore[assignment]
        import safe_pip.locking.flock

        assert not safe_pip.locking.flock.supported
        del sys.modules["fcntl"]  # filelock locks by what the platform has; here that is fcntl
    if attribute != "-":
        from safe_pip.launch import frozen_pip

        freeze = frozen_pip.freeze

        def freeze_and_change(*args, **kw):
            copy = freeze(*args, **kw)
            sys.path.append(str(copy.path))
            change(module, attribute)
            sys.path.remove(str(copy.path))
            return copy

        frozen_pip.freeze = freeze_and_change
    from safe_pip.cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
