"""Bearer tokens from a file: who has one, what is refused at the start, what a change does."""

from pathlib import Path

import pytest

from tower_server.gateway.token_file import BadTokenFile, TokenFile

JANE, JOE = "j" * 32, "k" * 32


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_token_says_user_and_groups(tmp_path: Path) -> None:
    text = f'# people\n{JANE},jane,1,"devs, ops"\n\n{JOE}, joe ,2\n'
    tokens = TokenFile(write(tmp_path / "t", text), Clock())
    jane, joe = tokens.caller(JANE.encode()), tokens.caller(JOE.encode())
    assert jane is not None and (jane.user, jane.groups) == ("jane", ("devs", "ops"))
    assert joe is not None and (joe.user, joe.groups) == ("joe", ())
    assert tokens.caller(b"") is None and tokens.caller(JANE[:-1].encode()) is None
    assert JANE not in repr(vars(tokens))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("short,jane,1", "at least 16"),
        (f"{JANE},jane", "token,user,uid"),
        (f"{JANE},jane,1,a,b", "token,user,uid"),
        (f"{JANE},,1", "empty"),
        (f"{JANE},ja\x01ne,1", "control character"),
        (f"{JANE}é,jane,1", "ASCII"),
        (f"{JANE},jane,1\n{JANE},joe,2", "twice"),
        (f'{JANE},jane,1,"unclosed', "line 1"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_without_showing_a_token(
    line: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(BadTokenFile) as refused:
        TokenFile(write(tmp_path / "t", line), Clock())
    assert why in str(refused.value) and JANE not in str(refused.value)


def test_a_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    for mode in (0o620, 0o602, 0o666):
        with pytest.raises(BadTokenFile, match="chmod 600"):
            TokenFile(write(tmp_path / "t", f"{JANE},jane,1", mode), Clock())
    with pytest.raises(BadTokenFile, match="cannot be read"):
        TokenFile(tmp_path / "nowhere", Clock())


def test_a_change_counts_within_a_second(tmp_path: Path) -> None:
    clock = Clock()
    tokens = TokenFile(write(tmp_path / "t", f"{JANE},jane,1"), clock)
    write(tmp_path / "t", f"{JOE},joe,1,devs")
    clock.now = 1.0
    assert tokens.caller(JANE.encode()) is None
    assert tokens.caller(JOE.encode()) is not None


def test_while_the_file_is_broken_nobody_gets_in(tmp_path: Path) -> None:
    clock = Clock()
    tokens = TokenFile(write(tmp_path / "t", f"{JANE},jane,1"), clock)
    for number, text in enumerate((f"{JANE},jane\n", None), 1):
        if text is None:
            (tmp_path / "t").unlink()
        else:
            write(tmp_path / "t", text)
        clock.now = float(number)
        assert tokens.caller(JANE.encode()) is None
    write(tmp_path / "t", f"{JANE},jane,22")
    clock.now = 9.0
    assert tokens.caller(JANE.encode()) is not None
