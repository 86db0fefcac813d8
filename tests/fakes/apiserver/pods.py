"""The node's part: pods run at once, their commands on this machine, their logs from files.

The same rules as tests/testbed/src/kubelet.go: a command runs in a folder of its pod, with
POD_NAME, POD_NAMESPACE, CONTAINER and LOG (the container's log file) set.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.fakes.apiserver.status import bad_request
from tests.fakes.apiserver.store import now_text

__all__ = ["PodFiles", "container_of", "running_status"]

Json = dict[str, Any]

FIRST_LINES = "hello from a fake pod\nsecond line\nthird line\n"
# How often a follower looks for new lines.
FOLLOW_INTERVAL_SECONDS = 0.02


def running_status(pod: Json, address: str) -> Json:
    """The status of a pod whose containers all run."""
    now = now_text()
    conditions = ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    return {
        "phase": "Running",
        "startTime": now,
        "hostIP": "127.0.0.1",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": now}
            for kind in conditions
        ],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container.get("image", ""),
                "imageID": "",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": now}},
            }
            for container in pod["spec"]["containers"]
        ],
    }


class PodFiles:
    """The folders of the pods."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def folder(self, pod: Json) -> Path:
        folder = self._path(pod)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def remove(self, pod: Json) -> None:
        """A pod of the same name made later has no part in the old one's files."""
        shutil.rmtree(self._path(pod), ignore_errors=True)

    def _path(self, pod: Json) -> Path:
        metadata = pod["metadata"]
        return self.directory / f"{metadata['namespace']}_{metadata['name']}"

    def log_file(self, pod: Json, container: str) -> Path:
        file = self.folder(pod) / f".{container}.log"
        if not file.exists():
            file.write_text(FIRST_LINES)
        return file

    def environment(self, pod: Json, container: str) -> dict[str, str]:
        """The environment of a command; of our own only what a shell needs."""
        folder = str(self.folder(pod))
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": folder,
            "POD_NAMESPACE": pod["metadata"]["namespace"],
            "POD_NAME": pod["metadata"]["name"],
            "CONTAINER": container,
            "LOG": str(self.log_file(pod, container)),
        }

    async def read_log(
        self,
        pod: Json,
        container: str,
        *,
        tail_lines: int | None,
        limit_bytes: int | None,
        follow: bool,
        timestamps: bool,
    ) -> AsyncIterator[bytes]:
        """Yield the log; with follow until the caller stops or the limit is reached."""
        left = limit_bytes
        with self.log_file(pod, container).open("rb") as file:
            if tail_lines is not None:
                file.seek(_tail_offset(file.read(), tail_lines))
            part = b""  # a line whose end is not written yet
            while left is None or left > 0:
                part += file.readline()
                if not part.endswith(b"\n") and follow:
                    await asyncio.sleep(FOLLOW_INTERVAL_SECONDS)
                    continue
                if not part:
                    return
                line = f"{now_text()} ".encode() + part if timestamps else part
                part = b""
                if left is not None:
                    line = line[:left]
                    left -= len(line)
                yield line


def container_of(pod: Json, name: str) -> str:
    """The container that a request means. Raises ApiError 400 if that is none, or not clear."""
    names = [container["name"] for container in pod["spec"]["containers"]]
    pod_name = pod["metadata"]["name"]
    if name:
        if name not in names:
            raise bad_request(f"container {name} is not valid for pod {pod_name}")
        return name
    if len(names) > 1:
        raise bad_request(
            f"a container name must be specified for pod {pod_name}, choose one of: [{' '.join(names)}]"
        )
    return str(names[0])


def _tail_offset(content: bytes, lines: int) -> int:
    """Where the last lines of content begin."""
    if lines == 0:
        return len(content)
    end = len(content.removesuffix(b"\n"))
    for _ in range(lines):
        end = content.rfind(b"\n", 0, end)
        if end < 0:
            return 0
    return end + 1
