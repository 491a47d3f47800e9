"""The commands of the start page are found: all of them, and nothing else."""

from strangers_walk import PAGE, printed


def test_commands_are_what_is_fenced_without_a_language_or_as_sh() -> None:
    commands = printed()
    assert commands[0].startswith("pip install ")
    assert all(command.startswith("vmamba ") for command in commands[1:])
    assert commands[-1].startswith("vmamba analyze ")  # after blocks of Python
    assert all(command in PAGE.read_text(encoding="utf-8").splitlines() for command in commands)
