"""What other commands did meanwhile is kept, noticed, or resolved again; never torn and never overwritten unseen."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.venvs.environment import Shop, ended
from tests.support.wheels.tiny import Project

pytestmark = pytest.mark.slow

A1, A2 = Project("aproject", "1"), Project("aproject", "2")
SLOW = Project("slow", "1")


def meanwhile(shop: Shop, *args, project: Project = SLOW, do=()):
    """Run `install *args` of a build that waits, and the commands `do` while it does."""
    waiting = shop.waiting(project)
    process = shop.start("install", waiting.tree, *args)
    waiting.begun(process)
    for command in do:
        shop.run(*command)
    waiting.release()
    return ended(process)


def test_a_project_installed_meanwhile_as_planned_is_dropped_from_the_plan_and_said(shop):
    shop.stock(A1)
    with meanwhile(shop, "aproject", do=[("install", "aproject")]) as (status, out, err):
        assert status == 0, err
        assert "`aproject 1` was installed meanwhile by another command" in err
        assert "Successfully installed slow-1\n" in out
    assert shop.installed() == {"aproject": "1", "slow": "1"}


def test_a_project_installed_meanwhile_in_another_version_is_resolved_again(shop):
    shop.stock(A1, A2)
    with meanwhile(shop, "aproject==1", do=[("install", "aproject==2")]) as (status, out, err):
        assert status == 0, err
        assert "`aproject` changed while this command was at work: trying again" in err
        assert "Found existing installation: aproject 2" in out
    assert shop.installed() == {"aproject": "1", "slow": "1"}


def test_what_was_already_satisfied_and_removed_meanwhile_is_installed_again(shop):
    shop.stock(A1)
    shop.run("install", "aproject")
    needing = Project("slow", "1", requires=("aproject",))
    with meanwhile(shop, project=needing, do=[("uninstall", "-y", "aproject")]) as (status, _, err):
        assert status == 0, err
        assert "trying again" in err
    assert shop.installed() == {"aproject": "1", "slow": "1"}


def test_an_unrelated_change_makes_no_plan_stale(shop):
    shop.stock(A1)
    with meanwhile(shop, do=[("install", "aproject")]) as (status, _, err):
        assert (status, "trying again" in err) == (0, False)


def test_forced_reinstallation_of_what_came_meanwhile_is_done_again(shop):
    shop.stock(A1)
    do = [("install", "aproject")]
    with meanwhile(shop, "--force-reinstall", "aproject", do=do) as (status, out, err):
        assert status == 0, err
        assert "trying again" in err
        assert "Successfully uninstalled aproject-1" in out


def test_ignoring_what_is_installed_ignores_what_came_meanwhile(shop):
    shop.stock(A1)
    do = [("install", "aproject")]
    with meanwhile(shop, "--ignore-installed", "aproject", do=do) as (status, out, err):
        assert (status, "trying again" in err) == (0, False)
        assert "Successfully installed aproject-1 slow-1" in out


def test_a_local_source_tree_is_installed_again_as_pip_would(shop):
    tree = A1.write_source_tree(shop.directory / "tree")
    with meanwhile(shop, tree, do=[("install", tree)]) as (status, out, err):
        assert status == 0, err
        assert "trying again" in err
        assert "Successfully uninstalled aproject-1" in out


def test_an_upgrade_that_another_command_made_meanwhile_is_not_made_twice(shop):
    shop.stock(A1)
    shop.run("install", "aproject")
    shop.stock(A2)
    do = [("install", "--upgrade", "aproject")]
    with meanwhile(shop, "--upgrade", "aproject", do=do) as (status, out, err):
        assert status == 0, err
        assert "`aproject 2` was installed meanwhile" in err
        assert "Successfully installed slow-1\n" in out


def test_a_user_site_that_another_command_made_meanwhile_is_looked_at(shop):
    """It was on nobody's path when the first command began."""
    shop.stock(A1, A2)
    python = Path(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info))
    arguments = ["-m", "safe_pip", "install", "--user", "--break-system-packages"]
    variables = shop.variables | {"PYTHONPATH": str(shop.site), "PYTHONUSERBASE": str(shop.directory / "base")}
    waiting = shop.waiting(SLOW)
    process = subprocess.Popen(
        [python, *arguments, waiting.tree, "aproject==1"],
        env=variables,
        cwd=shop.directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    waiting.begun(process)
    subprocess.run([python, *arguments, "aproject==2"], env=variables, check=True, cwd=shop.directory)
    waiting.release()
    with ended(process) as (status, _, err):
        assert status == 0, err
    (info,) = (shop.directory / "base").rglob("aproject-*.dist-info")
    assert info.name == "aproject-1.dist-info"


def test_a_plain_pip_is_noticed_as_well(shop):
    shop.stock(A1, A2)
    waiting = shop.waiting(SLOW)
    process = shop.start("install", waiting.tree, "aproject==1")
    waiting.begun(process)
    shop.plain("install", "aproject==2")
    waiting.release()
    with ended(process) as (status, _, err):
        assert status == 0, err
        assert "`aproject` changed" in err
    assert shop.installed()["aproject"] == "1"


def test_requirements_from_a_pipe_are_there_at_the_second_attempt_too(shop):
    shop.stock(A1, A2)
    waiting = shop.waiting(SLOW)
    reading, writing = os.pipe()
    process = subprocess.Popen(
        shop.command("install", "-r", f"/dev/fd/{reading}"),
        env=shop.variables,
        cwd=shop.directory,
        pass_fds=[reading],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(reading)
    with open(writing, "w") as pipe:
        pipe.write(f"aproject==1\n{waiting.tree}\n")
    waiting.begun(process)
    shop.run("install", "aproject==2")
    waiting.release()
    with ended(process) as (status, out, err):
        assert status == 0, err
        assert "trying again" in err
        assert "Successfully installed aproject-1 slow-1" in out


@pytest.mark.parametrize("times", range(3))
def test_two_commands_whose_resolves_rejected_a_version_end_as_one_of_the_serial_orders(shop, times):
    needs_b, needs_a = Project("aaa", "2", requires=("bbb==1",)), Project("bbb", "2", requires=("aaa==1",))
    shop.stock(Project("aaa", "1"), needs_b, Project("bbb", "1"), needs_a)
    processes = [shop.start("install", "--find-links", shop.index, name) for name in ("aaa", "bbb")]
    readers = [threading.Thread(target=process.communicate) for process in processes]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [process.returncode for process in processes] == [0, 0]
    assert shop.installed() in ({"aaa": "2", "bbb": "1"}, {"aaa": "1", "bbb": "2"})


def test_what_backtracking_rejected_is_part_of_the_read_set(shop):
    """`slow` needs `bbb`; its newest version needs `aaa==1`, and `aaa 2` is there; then `aaa` becomes 1 meanwhile."""
    shop.stock(Project("aaa", "1"), Project("aaa", "2"))
    shop.stock(Project("bbb", "1"), Project("bbb", "2", requires=("aaa==1",)))
    shop.run("install", "aaa==2")
    (shop.directory / "constraints").write_text("aaa==2\n")
    waiting = shop.waiting(Project("slow", "1", requires=("bbb",)))
    process = shop.start("install", waiting.tree, "-c", "constraints")
    waiting.begun(process)
    shop.run("uninstall", "-y", "aaa")
    waiting.release()
    with ended(process) as (status, _, err):
        assert status == 0, err
        assert "`aaa` changed while this command was at work" in err
    assert shop.installed()["bbb"] == "1"


def test_conflicts_are_those_with_what_is_installed_at_the_end(shop):
    shop.stock(A1, A2, Project("needing", "1", requires=("aproject==1",)))
    with meanwhile(shop, "aproject==2", do=[("install", "--no-deps", "needing")]) as (status, _, err):
        assert status == 0, err
        assert "needing 1 requires aproject==1, but you have aproject 2 which is incompatible." in err
        assert "Please file an issue" not in err


def test_a_report_on_standard_output_is_printed_once(shop):
    shop.stock(A1)
    waiting = shop.waiting(SLOW)
    process = shop.start("install", "-q", "--report", "-", waiting.tree, "aproject")
    waiting.begun(process)
    refused = shop.run("--lock-timeout", "0", "install", "aproject", status=75)
    assert "Nothing was changed" in refused.stderr
    waiting.release()
    with ended(process) as (status, out, err):
        assert status == 0, err
        assert out.count('"pip_version"') == 1
    assert shop.installed() == {"aproject": "1", "slow": "1"}


def prompted(process) -> str:
    """What is printed up to the question."""
    seen = ""
    while "Proceed (Y/n)?" not in seen:
        letter = process.stdout.read(1)
        assert letter, process.stderr.read()
        seen += letter
    return seen


def test_no_lock_is_held_while_the_question_is_asked(shop):
    shop.stock(A1, Project("other", "1"))
    shop.run("install", "aproject")
    process = shop.start("uninstall", "aproject")
    prompted(process)
    shop.run("--lock-timeout", "0", "install", "other")
    with ended(process, "y\n") as (status, out, err):
        assert status == 0, err
        assert "Successfully uninstalled aproject-1" in out
    assert shop.installed() == {"other": "1"}


def test_a_project_that_was_removed_during_the_question_is_skipped_in_pips_words(shop):
    shop.stock(A1, Project("other", "1"))
    shop.run("install", "aproject", "other")
    process = shop.start("uninstall", "aproject")
    prompted(process)
    shop.run("uninstall", "-y", "aproject")
    with ended(process, "y\n") as (status, _, err):
        assert status == 0
        assert "WARNING: Skipping aproject as it is not installed." in err
    assert shop.installed() == {"other": "1"}


def test_a_project_that_was_replaced_during_the_question_is_removed_on_the_answer_from_a_pipe(shop):
    shop.stock(A1, A2)
    shop.run("install", "aproject==1")
    process = shop.start("uninstall", "aproject")
    prompted(process)
    shop.run("install", "aproject==2")
    with ended(process, "y\n") as (status, out, err):
        assert status == 0, err
        assert "trying again" in err
        assert "Successfully uninstalled aproject-2" in out
    assert shop.installed() == {}


def test_a_refusal_at_the_question_removes_nothing(shop):
    shop.stock(A1)
    shop.run("install", "aproject")
    done = shop.run("uninstall", "aproject", given="n\n")
    assert "uninstalled" not in done.stdout
    assert shop.installed() == {"aproject": "1"}


def test_all_names_of_one_uninstall_are_one_change(shop):
    shop.stock(A1, Project("other", "1"))
    shop.run("install", "aproject", "other")
    done = shop.run("uninstall", "-y", "aproject", "other", "missing")
    assert shop.installed() == {}
    assert "Successfully uninstalled aproject-1" in done.stdout
    assert "Successfully uninstalled other-1" in done.stdout
    assert "Skipping missing as it is not installed" in done.stderr
