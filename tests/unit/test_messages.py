"""What a command says while it works."""

from pathlib import Path

import pytest

from safe_pip.messages import Reporter


@pytest.mark.parametrize("verbose", [False, True])
def test_what_is_used_without_a_lock_is_said_once_to_a_user_who_wants_to_know(
    capfd: pytest.CaptureFixture[str], verbose: bool
) -> None:
    reporter = Reporter(verbose=verbose)
    for path in (Path("/cluster/one"), Path("/cluster/two"), Path("/cluster/one")):
        reporter.unlocked(path)
    said = capfd.readouterr().err.splitlines()
    assert [line.split("`")[1] for line in said] == (["/cluster/one", "/cluster/two"] if verbose else [])
