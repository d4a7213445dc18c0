"""What pip reads of the environment when it goes to the network: user agent, keyring, SOCKS proxies; cached pages."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from safe_pip.environment.transaction import Transaction
from safe_pip.pip_seams.seam import Seam, SeamBroken

SESSION = Seam("pip._internal.cli.index_command", "SessionCommandMixin._build_session", ("options",))
USER_AGENT = Seam("pip._internal.network.session", "user_agent", ())
REQUEST = Seam("pip._internal.network.session", "PipSession.request", ("self", "method", "url"))
AUTHORITIES = Seam("pip._vendor.truststore", "SSLContext.load_verify_locations", ("self",))
KEYRING = Seam("pip._internal.network.auth", "KeyRingPythonProvider")
SOCKS = Seam("pip._vendor.requests.adapters", "SOCKSProxyManager")
PAGE = Seam("pip._internal.network.cache", "SafeFileCache.get", ("self", "key"))
BODY = Seam("pip._internal.network.cache", "SafeFileCache.get_body", ("self", "key"))

_LATER = "not known yet"

_ASK_KEYRING = """
import json, sys
if sys.path and sys.path[0] == "":
    del sys.path[0]
answer = {}
try:
    import keyring
except ImportError as error:
    answer["missing"] = str(error)
except Exception as error:
    answer["failed"] = str(error)
else:
    try:
        keyring.get_keyring()  # imports more
    except Exception:
        pass
print("\\nimported", flush=True)
question = json.load(sys.stdin)
url, username = question["url"], question["username"]
try:
    if answer or url is None:
        pass
    elif question["password"] is not None:
        keyring.set_password(url, username, question["password"])
    elif hasattr(keyring, "get_credential"):
        found = keyring.get_credential(url, username)
        answer["found"] = found and [found.username, found.password]
    elif username is not None:
        password = keyring.get_password(url, username)
        answer["found"] = [username, password] if password else None
except Exception as error:
    answer["failed"] = str(error)
print("\\n" + json.dumps(answer), end="")
"""


def attach(transaction: Transaction) -> None:
    """Attach to the first network session that pip makes; its modules are not imported before."""
    is_attached = False

    def build_session(original: Any, command: Any, options: Any, *args: Any, **kw: Any) -> Any:
        nonlocal is_attached
        if not is_attached:
            is_attached = True
            _attach(transaction)
            named = (value for name, value in os.environ.items() if name.lower().endswith("_proxy"))
            if any((each or "").lower().startswith("socks") for each in (options.proxy, *named)):
                transaction.read(lambda: _load_socks(transaction.path))
        return original(command, options, *args, **kw)

    SESSION.replace(build_session)


def _attach(transaction: Transaction) -> None:
    find_out = USER_AGENT.check()
    authorities, is_asked = ExitStack(), False

    def load(original: Any, *args: Any, **kw: Any) -> None:
        authorities.callback(original, *args, **kw)
        if is_asked:
            authorities.close()

    def request(original: Any, session: Any, *args: Any, **kw: Any) -> Any:
        """Read the certificates, and start programs (rustc) for the user agent, no earlier than for a request."""
        nonlocal is_asked
        is_asked = True
        authorities.close()
        if session.headers.get("User-Agent") == _LATER:
            # It names the version of setuptools, which decides nothing.
            with transaction.unrecorded():
                session.headers["User-Agent"] = str(find_out())
        return original(session, *args, **kw)

    with suppress(SeamBroken):  # without truststore (no `ssl`, an older platform) there is nothing to put off
        AUTHORITIES.replace(load)
    REQUEST.replace(request)
    USER_AGENT.replace(lambda original: _LATER)
    _attach_to_pages()
    KEYRING.put(partial(_Keyring, transaction))


def _attach_to_pages() -> None:
    """Read both files of a cached page at once: pip takes a page without its body for an empty one."""
    bodies: dict[str, Any] = {}
    get_body = BODY.check()

    def get(original: Any, cache: Any, key: str) -> bytes | None:
        found: bytes | None = original(cache, key)
        body = get_body(cache, key) if found is not None else None
        if body is None:
            return None
        if (stale := bodies.pop(key, None)) is not None:
            stale.close()
        bodies[key] = body
        return found

    PAGE.replace(get)
    BODY.replace(lambda original, cache, key: bodies.pop(key, None) or original(cache, key))


class _Keyring:
    """The environment's keyring, asked in a child interpreter: this one imports nothing of the environment."""

    has_keyring = True

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._ask(None, None)

    def get_auth_info(self, url: str, username: str | None) -> Any:
        found = self._ask(url, username).get("found")
        return tuple(found) if found else None

    def save_auth_info(self, url: str, username: str, password: str) -> None:
        self._ask(url, username, password)

    def _ask(self, url: str | None, username: str | None, password: str | None = None) -> dict[str, Any]:
        question = json.dumps({"url": url, "username": username, "password": password})
        command = [sys.executable, "-c", _ASK_KEYRING]
        with self._transaction.environment.building():
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert child.stdout is not None
            while (line := child.stdout.readline()) and line.strip() != b"imported":
                pass
        # No lock is held while the keyring asks its user.
        answered, _ = child.communicate(question.encode())
        try:
            answer: dict[str, Any] = json.loads(answered.rpartition(b"\n")[2])
        except ValueError:
            answer = {"failed": f"it ended with status {child.returncode}"}
        if "missing" in answer:
            raise ImportError(answer["missing"])
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer


def _load_socks(path: Iterable[str]) -> None:
    """Load PySocks, the one module that pip imports from the environment on purpose; pip has looked for it once."""
    spec = importlib.machinery.PathFinder.find_spec("socks", list(path))
    if spec is not None and spec.loader is not None:
        sys.modules["socks"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["socks"])
        SOCKS.put(importlib.import_module("pip._vendor.urllib3.contrib.socks").SOCKSProxyManager)
