"""The admin socket's file: its mode, its directory, and what was left of a dead server."""

import contextlib
import os
import socket
import stat
from pathlib import Path

import pytest
from aiohttp import web

from shared.program import ProgramFailed
from tower_server.admin_socket import bind_admin_socket, serve_on_socket


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def leave_dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


async def test_the_socket_is_the_owner_s_alone_and_goes_with_the_server(
    tmp_path: Path,
) -> None:
    path = tmp_path / "state" / "admin.sock"
    async with serve_on_socket(web.Application(), path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert connects(path)
    assert os.listdir(path.parent) == []


async def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        async with serve_on_socket(web.Application(), tmp_path / "admin.sock"):
            assert stat.S_IMODE((tmp_path / "admin.sock").stat().st_mode) == 0o600
        assert os.umask(0) == 0
    finally:
        os.umask(previous)


async def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    leave_dead_socket(path)
    assert not connects(path)
    async with serve_on_socket(web.Application(), path):
        assert connects(path)


async def test_the_socket_of_a_live_server_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with serve_on_socket(web.Application(), path):
        with pytest.raises(ProgramFailed, match="already running"):
            bind_admin_socket(path)
        assert connects(path)
        assert os.listdir(tmp_path) == ["admin.sock"]


def test_a_server_that_is_too_busy_to_accept_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tower_server.admin_socket.PROBE_TIMEOUT_SECONDS", 0.05)
    path = tmp_path / "admin.sock"
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(str(path))
        busy.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        with pytest.raises(ProgramFailed, match="already running"):
            bind_admin_socket(path)


async def test_a_socket_that_took_our_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with serve_on_socket(web.Application(), path):
        path.unlink()
        leave_dead_socket(path)
    assert path.exists()


def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.write_text("precious")
    with pytest.raises(ProgramFailed, match="is not a socket"):
        bind_admin_socket(path)
    assert path.read_text() == "precious"


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ProgramFailed, match="is not a socket"):
        bind_admin_socket(path)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o770, 0o722, 0o777])
def test_a_directory_that_others_can_write_to_is_refused(
    tmp_path: Path, mode: int
) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ProgramFailed, match=f"chmod go-w {tmp_path}"):
        bind_admin_socket(tmp_path / "admin.sock")


def test_a_sticky_directory_is_good_enough(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    bind_admin_socket(tmp_path / "admin.sock").close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(ProgramFailed, match="belongs to another user"):
        bind_admin_socket(tmp_path / "admin.sock")


def test_a_directory_that_cannot_be_made_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProgramFailed, match="cannot be used"):
        bind_admin_socket(tmp_path / "file" / "admin.sock")
