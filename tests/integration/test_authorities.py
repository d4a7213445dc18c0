"""safe-pip trusts the certificates that pip trusts, and reads the bundle only before the first request."""

from __future__ import annotations

import base64
import hashlib
import http.server
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from tests.support.venvs.pip_environment import PipEnvironment
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

BUNDLE = "pip/_vendor/certifi/cacert.pem"
READ = "the bundle was read"
# Says on standard error when the bundle is read.
PROGRAM = f"""
import sys
from safe_pip.launch import isolation
isolation.isolate()
import ssl
def load(context, cafile=None, *args, **kw):
    if str(cafile).endswith({BUNDLE!r}):
        print({READ!r}, file=sys.stderr)
    super(ssl.SSLContext, context).load_verify_locations(cafile, *args, **kw)
ssl.SSLContext.load_verify_locations = load
from safe_pip.cli import main
sys.argv[:1] = ["safe-pip"]
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@contextmanager
def index_of(directory: Path, authority: trustme.CA) -> Iterator[str]:
    """Serve `directory` as a flat index over TLS; yields its URL."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(directory))

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            pass  # a client that does not trust us goes away

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def have_pip_trust(env: PipEnvironment, authority: trustme.CA) -> None:
    """Add the authority to the bundle of the environment's pip and update RECORD, as if pip came with it."""
    bundle = env.site / BUNDLE
    content = bundle.read_bytes() + authority.cert_pem.bytes()
    bundle.write_bytes(content)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    (record,) = env.site.glob("pip-*.dist-info/RECORD")
    lines = record.read_text().splitlines()
    (old,) = (line for line in lines if line.startswith(f"{BUNDLE},"))
    lines[lines.index(old)] = f"{BUNDLE},sha256={digest},{len(content)}"
    record.write_text("\n".join(lines) + "\n")


def noting(env: PipEnvironment, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command that reports when the bundle is read."""
    command = [str(env.venv.python), "-c", PROGRAM, *args]
    return subprocess.run(
        command, env=env.variables, cwd=env.directory, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


@pytest.fixture
def asking(env: PipEnvironment) -> PipEnvironment:
    """An environment whose pip uses the network and gives up at once on an index that it does not trust."""
    env.add_to_index(Project("aproject", "1"))
    env.more |= {"PIP_RETRIES": "0"}
    return env


def test_an_index_that_the_bundle_vouches_for_is_trusted(asking: PipEnvironment, authority: trustme.CA) -> None:
    have_pip_trust(asking, authority)
    with index_of(asking.index, authority) as url:
        done = noting(asking, "install", f"{url}aproject-1-py3-none-any.whl")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(READ) == 1


def test_an_index_without_a_known_authority_is_not_trusted(asking: PipEnvironment, authority: trustme.CA) -> None:
    with index_of(asking.index, authority) as url:
        done = noting(asking, "download", f"{url}aproject-1-py3-none-any.whl")
    assert done.returncode != 0
    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr
    assert READ in done.stderr


def test_a_command_without_a_request_does_not_read_the_bundle(asking: PipEnvironment) -> None:
    done = noting(asking, "install", "aproject")
    assert done.returncode == 0, done.stderr
    assert READ not in done.stderr
