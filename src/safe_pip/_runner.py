"""safe-pip for another interpreter: what `safe-pip --python PATH` starts under PATH, as pip starts itself there.

That interpreter's environment needs neither pip nor safe-pip: this file loads the package that it lies in, and the pip
to run is the frozen copy that SAFE_PIP_FROZEN names. It is run by path, never imported.
"""

# The user may name any Python, so Python 2.7 must be able to parse this file, and the version is checked first.
import sys

MINIMUM = (3, 10)

if sys.version_info[:2] < MINIMUM:
    # pip's own sentence: tools look for it.
    raise SystemExit(
        "This version of pip does not support python {} (requires >={}).".format(
            ".".join(str(part) for part in sys.version_info[:2]), ".".join(str(part) for part in MINIMUM)
        )
    )

if sys.version_info >= (3, 15):
    sys.set_lazy_imports("normal")  # as in `isolation`, which is imported below while the path is the environment's

# What `importlib.util` offers by the same names. It may not be imported yet: the path is still the environment's, and
# begins with our own directory, whose `errors` and `trace` may be names of other modules, too.
load = sys.modules["_frozen_importlib_external"].spec_from_file_location
create = sys.modules["_frozen_importlib"].module_from_spec

directory = __file__.rpartition("\\" if sys.platform == "win32" else "/")[0] or "."
spec = load("safe_pip", directory + "/__init__.py", submodule_search_locations=[directory])
package = sys.modules["safe_pip"] = create(spec)
spec.loader.exec_module(package)

from safe_pip.__main__ import main  # noqa: E402

# As pip has it below `--python`: it then calls itself `PATH -m pip`.
sys.argv[0] = directory + "/__main__.py"

if __name__ == "__main__":
    sys.exit(main())
