"""Processes and mounts, as /proc shows them."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from safe_pip.fs import proc
from tests.support.processes.proc import fake_mount, fake_proc

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="there is no /proc/locks")


def test_the_device_is_the_superblocks_where_stat_gives_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fake_proc(
        tmp_path,
        monkeypatch,
        **{
            f"self__fdinfo__{descriptor}": "pos:\t0\nflags:\t0100000\nmnt_id:\t77\n",
            "self__mountinfo": "76 1 0:1 / / rw - ext4 /dev/a rw\n77 76 0:44 /home /home rw - btrfs /dev/b rw\n",
        },
    )
    assert proc.kernel_name(descriptor) == f"00:2c:{os.fstat(descriptor).st_ino}"
    os.close(descriptor)


@pytest.mark.parametrize(
    ("after", "is_shared"),
    [
        *((f"{kind} /dev/sda1 rw", False) for kind in ("ext2", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "squashfs")),
        ("nfs4 server:/export rw,local_lock=none", True),
        ("fuse.glusterfs server:/volume rw", True),
        ("fuse.sshfs host: rw", True),
        ("fuse.squashfuse squashfuse rw", False),
        ("lustre 10.0.0.1@tcp:/scratch rw,flock", True),
        ("new-filesystem none rw", True),
    ],
)
def test_a_filesystem_that_is_not_known_to_be_local_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str, is_shared: bool
) -> None:
    fake_mount(tmp_path, monkeypatch, tmp_path, after)
    assert proc.is_shared(str(tmp_path)) == is_shared
    assert proc.is_shared(str(tmp_path / "not" / "there")) == is_shared


def test_a_subvolume_whose_device_no_mount_names_is_found_by_its_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_mount(tmp_path, monkeypatch, tmp_path, "nfs4 server:/export rw", device="0:1")
    monkeypatch.setattr(proc, "volume", lambda path: (os.stat(path).st_dev, 77))
    assert proc.filesystem(str(tmp_path)).kind == "nfs4"
    assert {"noatime", "rw"} <= proc.filesystem(str(tmp_path)).options


def test_a_filesystem_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    fake_mount(tmp_path, monkeypatch, tmp_path, "nfs4 server:/export rw")
    assert proc.is_shared(str(tmp_path))
    monkeypatch.setattr(proc, "_mounts", None)
    assert proc.is_shared(str(tmp_path / "below"))
    monkeypatch.setattr(os, "stat", None)
    assert proc.is_shared(str(tmp_path))


def test_a_name_with_blanks_and_parentheses_hides_no_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = " ".join(str(number) for number in range(5, 40))
    fake_proc(
        tmp_path,
        monkeypatch,
        **{
            "9__stat": f"9 (a ) T (b) T 8 {fields}\n",
            "8__stat": f"8 (sh) S 0 {fields}\n",
            "9__cmdline": "make\0-j\0two words\0\n\0",
            "stat": "cpu 1\nbtime 1000\n",
        },
    )
    monkeypatch.setattr(os, "getpid", lambda: 9)
    assert proc.ancestors() == [8]
    assert proc.state(9) == "T"
    assert proc.command(9) == "make -j 'two words' '?'"
    assert proc.start_ticks(9) == 22


def test_without_proc_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "_PROC", tmp_path / "missing")
    monkeypatch.setattr(proc, "_known", {})
    assert proc.ancestors() == []
    assert (proc.command(1), proc.started(1)) == ("", None)
    assert proc.is_shared(str(tmp_path)), "unless it is known to be local"
    assert proc.mount_points() == frozenset()


def test_this_process_descends_from_the_one_that_started_it() -> None:
    assert proc.ancestors()[0] == os.getppid()
    assert proc.command(os.getpid())


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("/venv/bin/python3.13 /venv/bin/safe-pip install six", "safe-pip install six"),
        ("/venv/bin/python -m pip list", "/venv/bin/python -m pip list"),
        ("/usr/bin/python3 /venv/bin/pytest -x", "/usr/bin/python3 /venv/bin/pytest -x"),
        ("/pipx/venvs/tool/bin/python /root/.local/bin/safe-pip list", "safe-pip list"),
        ("/venv/bin/python /tool/safe_pip/_runner.py list -v", "safe-pip --python /venv/bin/python list -v"),
        ("/tool/bin/python /tool/safe_pip/_runner.py --python /v list", "safe-pip --python /v list"),
        ("python3 script.py", "python3 script.py"),
        ("/bin/sh /bin/thing", "/bin/sh /bin/thing"),
    ],
)
def test_a_script_is_shown_as_it_was_typed_without_the_interpreter_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, shown: str
) -> None:
    fake_proc(tmp_path, monkeypatch, **{"9__cmdline": words.replace(" ", "\0") + "\0"})
    assert proc.command(9) == shown


def test_mount_points_are_read_as_the_kernel_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_proc(tmp_path, monkeypatch, self__mountinfo="")
    lines = b"1 2 3:4 / /a\\040b\\134c rw - ext4 /dev/x rw\n2 1 3:4 / /\xff rw shared:1 - tmpfs tmpfs rw\n"
    (tmp_path / "self/mountinfo").write_bytes(lines)
    assert proc.mount_points() == {"/a b\\c", "/\udcff"}


def test_a_process_is_noted_and_read_again() -> None:
    note = proc.own_note()
    assert proc.read_note(note) == (os.getpid(), proc.command(os.getpid()), note["since"], "")
    for damaged in ({}, {**note, "pid": None}, {**note, "since": "soon"}):
        with pytest.raises((LookupError, TypeError, ValueError)):
            proc.read_note(damaged)


SECRET = "s3cr.t"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("pip", "install", f"--index-url=https://user:{SECRET}@host/simple"), "--index-url=https://****@host/simple"),
        (("pip", "install", "-i", f"https://{SECRET}@host:8080/simple"), "-i 'https://****@host:8080/simple'"),
        (("pip", "install", "-i", f"https://user:a/{SECRET}@host/simple"), "-i 'https://****@host/simple'"),
        (("pip", "install", f"x @ git+https://{SECRET}@host/x.git@v1"), "'x @ git+https://****@host/x.git@v1'"),
        (("pip", "install", f"https://host/x.whl?a=b&access_token={SECRET}&c=d"), "access_token=****&c=d'"),
        (("pip", "--proxy", f"user:{SECRET}@host:3128", "list"), "'****@host:3128'"),
        (("pip", f"--proxy=user:{SECRET}@host:3128", "list"), "'--proxy=****@host:3128'"),
        (("pip", "install", "-C", f"api_key={SECRET}", "x"), "-C 'api_key=****' x"),
        (("twine", "upload", "-u", "me", "-p", SECRET, "dist/x"), "-u me -p **** dist/x"),
        (("twine", "upload", "--password", SECRET, "dist/x"), "--password **** dist/x"),
        (("sshpass", f"-p{SECRET}", "ssh", "host"), "'-p****' ssh host"),
        (("curl", "-u", f"me:{SECRET}", "-H", f"Authorization: Bearer {SECRET}", "host"), "'Authorization: ****' host"),
        (("curl", f"--user=me:{SECRET}", "-H", f"Private-Token: {SECRET}"), "'--user=****' -H 'Private-Token: ****'"),
        (("env", f"PGPASSWORD={SECRET}", f"GH_TOKEN=a {SECRET}", "make"), "'PGPASSWORD=****' 'GH_TOKEN=****' make"),
        (
            ("sh", "-c", f"cd x; GH_TOKEN='a {SECRET}' make --password {SECRET}; x"),
            "GH_TOKEN=**** make --password ****; x",
        ),
        (("tool", "--data", f'{{"password": "a {SECRET}"}}'), '"password": ****'),
        ((f"title of a process https://me:{SECRET}@host/",), "https://****@host/"),
    ],
)
def test_a_command_line_is_shown_without_secrets(
    words: tuple[str, ...], shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_proc(tmp_path, monkeypatch, **{"9__cmdline": "\0".join(words) + "\0"})
    assert SECRET not in proc.command(9)
    assert shown in proc.command(9)
    monkeypatch.setattr(os, "getpid", lambda: 9)
    assert SECRET not in str(proc.own_note())
    monkeypatch.setattr(sys, "argv", list(words))
    monkeypatch.setattr(os, "getpid", lambda: 10)  # there is no such process: nothing is known as without /proc
    assert SECRET not in str(proc.own_note())


def test_a_note_that_another_version_wrote_is_shown_without_secrets() -> None:
    note = {"pid": 1, "command": f"pip install -i https://me:{SECRET}@host/ --token {SECRET} x", "since": 1.0}
    assert proc.read_note(note)[1] == "pip install -i https://****@host/ --token **** x"


@pytest.mark.parametrize(
    "line",
    [
        "pip install --user --no-cache-dir x==1.0 'y @ file:///src/y'",
        "git commit --author me --amend",
        "pip install git+https://host/x.git@v1 -c https://host:8080/constraints.txt",
        "mkdir -p a/b",
        "docker run --volume /a:/b -u 0 image",
        "tool --tokenizer fast --bypass all --keyboard de",
        "ssh git@host",
    ],
)
def test_a_command_line_without_secrets_is_shown_as_it_was_typed(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_proc(tmp_path, monkeypatch, **{"9__cmdline": "\0".join(shlex.split(line)) + "\0"})
    assert shlex.split(proc.command(9)) == shlex.split(line)
