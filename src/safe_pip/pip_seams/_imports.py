"""What a build backend imports: this file is run in front of the script with which pip calls a backend, never imported.

It runs that script, its first argument, as if it had been started alone, in the Python of the build. Then it lists the
files of the modules that came meanwhile in `imported.json`, in the directory where the script puts its own result.
"""

import json
import os
import sys

script, (_, control), process, before = sys.argv.pop(1), sys.argv[1:], os.getpid(), frozenset(sys.modules)
own, sys.argv[0] = os.path.dirname(__file__), script
sys.path[:1] = [os.path.dirname(script) if each == own else each for each in sys.path[:1]]
__file__ = script
try:
    with open(script, "rb") as source:
        exec(compile(source.read(), script, "exec"))
finally:
    if os.getpid() == process:  # a forked child of the backend may come here too
        found = []
        for name, module in list(sys.modules.items()):
            try:
                # Not `getattr`: a lazy module would load itself.
                file = object.__getattribute__(module, "__dict__").get("__file__")
            except AttributeError:
                continue
            if name not in before and isinstance(file, str):
                found.append(os.path.abspath(file))
        with open(os.path.join(control, "imported.json"), "w", encoding="ascii") as listed:
            json.dump(found, listed)
