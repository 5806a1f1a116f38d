"""The commands as such: their help, and arguments that make no sense."""

import subprocess
import sys

import pytest

from batchstream._cli.commands import main
from support.serving import SECONDS


def test_the_help_names_the_commands_and_each_says_what_it_does(capsys):
    for arguments, words in {
        ("--help",): ["top", "demo", "a live view of a running server"],
        ("top", "--help"): ["URL", "--interval", "--once", "keys: q ends it"],
        ("demo", "--help"): ["--clients", "--seed", "--plain", "--svg", "ended whatever happens"],
    }.items():
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert [word for word in words if word not in shown] == []
        assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["top"], "required: URL"),
        (["top", "a", "--interval", "0"], "a number of seconds above 0 is needed, got '0'"),
        (["top", "a", "--interval", "soon"], "a number of seconds above 0 is needed, got 'soon'"),
        (["demo", "--clients", "0"], "a whole number from 1 on is needed, got '0'"),
        (["demo", "--slots", "1.5"], "a whole number from 1 on is needed, got '1.5'"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clients", "3"], "pass --clients 4 or more"),
        (["--svg", "no/such/folder/a.svg"], "there is no folder for the file"),
    ],
)
def test_a_demonstration_that_cannot_be_is_refused_before_it_begins(arguments, message, capsys):
    assert main(["demo", *arguments]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert message in error


def test_the_package_alone_imports_no_command():
    code = "import batchstream, sys; print([name for name in sys.modules if '._cli' in name])"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert done.stdout == "[]\n"
