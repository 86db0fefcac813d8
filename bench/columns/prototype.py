"""The prototype of design.md 5, run as its README says: one pair of programs a face."""

import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from bench.certificates import SERVER_NAME
from bench.columns.column import Column
from bench.generator import Endpoint
from bench.processes import Process
from bench.site import PYTHON, ROOT, Site, Unavailable, free_port
from bench.workloads import Face, Link

__all__ = ["VARIABLE", "start"]

VARIABLE = "TOWER_PROTOTYPE"
BESIDE_THE_CHECKOUT = ROOT.parent / "shared" / "prototype"
# Its README: without these glibc maps every large buffer anew, at a third of the speed.
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TOP_PAD_": "16777216",
}
# Longer than a round trip of any link here, in which a handshake is quiet, too.
QUIET_SECONDS = 0.5
QUIET_WITHIN_SECONDS = 15.0
AGENTS = {Face.RAW: "agent.py", Face.SEALED: "agent_sealed.py"}


def start(site: Site, link: Link) -> Column:
    """Start both pairs and wait for an answer through each."""
    folder = Path(os.environ.get(VARIABLE) or BESIDE_THE_CHECKOUT).resolve()
    if not (folder / "server.py").is_file():
        raise Unavailable(f"no prototype in {folder}; {VARIABLE} names another folder")
    endpoints: dict[Face, Endpoint] = {}
    ends: dict[Face, dict[str, Process]] = {}
    for face, upstream in (
        (Face.RAW, site.raw_address),
        (Face.SEALED, site.https_address),
    ):
        port = free_port()
        ends[face] = _start_pair(site, link, folder, face, port, upstream)
        endpoints[face] = site.upstream(face, f"{SERVER_NAME}:{port}")
        _wait_until_quiet(ends[face].values())
        site.wait_until_served(f"the prototype's {face.value} entry", endpoints[face])
    return Column(endpoints=endpoints, ends=ends.__getitem__)


def _start_pair(
    site: Site, link: Link, folder: Path, face: Face, entry_port: int, upstream: str
) -> dict[str, Process]:
    tunnel_port = free_port()
    names = {
        end: f"prototype-{link.name}-{face.value}-{end}" for end in ("server", "agent")
    }
    for name in names.values():
        _put_certificate(site, site.directory / name)
    server = site.processes.start(
        names["server"],
        [PYTHON, str(folder / "server.py"), str(entry_port), str(tunnel_port)],
        **MALLOC,
    )
    _wait_until_quiet([server])
    address = site.behind(link, names["server"], f"{SERVER_NAME}:{tunnel_port}")
    agent = site.processes.start(
        names["agent"],
        [PYTHON, str(folder / AGENTS[face]), _port(address), _port(upstream)],
        **MALLOC,
    )
    return {"server": server, "agent": agent}


def _wait_until_quiet(ends: Collection[Process]) -> None:
    """Return when neither end has used CPU for a while.

    It has no ready line, and to try is no way: a connection that comes before the
    agent's WebSocket handshake is done breaks its entry for good. Importing and
    shaking hands use CPU; waiting does not.
    """
    deadline = time.monotonic() + QUIET_WITHIN_SECONDS
    before = -1.0
    while time.monotonic() < deadline:
        for end in ends:
            if not end.alive():
                raise Unavailable(f"{end.name} ended: {end.said()}")
        used = sum(end.cpu_seconds() for end in ends)
        if used == before and all(end.cpu_seconds() for end in ends):
            return
        before = used
        time.sleep(QUIET_SECONDS)


def _put_certificate(site: Site, directory: Path) -> None:
    """It reads cert.pem and key.pem from its working directory."""
    directory.mkdir()
    shutil.copy(site.certificates.server, directory / "cert.pem")
    shutil.copy(site.certificates.server_key, directory / "key.pem")


def _port(address: str) -> str:
    return address.rpartition(":")[2]
