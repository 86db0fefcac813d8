"""A pod's process, run as its Deployment says: command, arguments, environment, files, user, root.

There is no container engine in the tests. What a kubelet and a runtime would do, we do with
namespaces: the image's root file system (deploy/rootfs.sh) read-only, volumes and the
ServiceAccount's files mounted into it, and the user of the security context with no new
privileges. One thing differs: addresses of all interfaces become loopback ones with free ports.
"""

import base64
import http.client
import os
import re
import shlex
import shutil
import socket
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.processes import Process
from tests.testbed.controlplane import ControlPlane

__all__ = ["Pod", "can_run_pods"]

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

# The image's (Dockerfile).
IMAGE_PATH = "/usr/local/bin"

# A test run that is killed cannot stop its pods; this bounds how long they outlive it.
MAX_LIFE_SECONDS = 600

_ALL_INTERFACES = re.compile(r"(?<![0-9.])0\.0\.0\.0:(\d+)")


def can_run_pods() -> str | None:
    """What is missing here for running pods, in one line; None if nothing is."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "mounting a pod's root needs Linux and root"
    return None


def _program(name: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert path is not None, f"no {name} on this machine"
    return path


class Pod:
    """The one container of a pod, as a process of this machine."""

    def __init__(
        self,
        plane: ControlPlane,
        deployment: dict[str, Any],
        image: Path,
        home: Path,
        ports: Mapping[int, int] | None = None,
    ) -> None:
        self.namespace = deployment["metadata"]["namespace"]
        self.name = deployment["metadata"]["name"] + "-pod"
        self._plane = plane
        self._image = image
        # What only this pod has: its mounts' sources and its log.
        self._home = home
        self._spec = deployment["spec"]["template"]["spec"]
        self._container = self._spec["containers"][0]
        # Port in the container -> ours on loopback; free ones where none is given.
        self.ports = dict(ports or {})
        home.mkdir(parents=True, exist_ok=True)
        self.process = Process(
            self.name,
            [
                _program("unshare"),
                "--mount",
                "/bin/sh",
                "-eu",
                str(self._write_script()),
            ],
            self._environment(),
            home / "pod.log",
        )

    def volume(self, name: str) -> Path:
        """Where a volume's files are on this machine."""
        return self._home / name

    def probe(self, kind: str) -> int:
        """The status of an httpGet probe of the container; 0 if nothing answers."""
        target = self._container[kind]["httpGet"]
        named = {
            port["name"]: port["containerPort"] for port in self._container["ports"]
        }
        port = self.ports[named.get(target["port"], target["port"])]
        connection: http.client.HTTPConnection
        if target.get("scheme") == "HTTPS":
            # A kubelet does not verify either.
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(
                "127.0.0.1", port, timeout=5, context=context
            )
        else:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", target["path"])
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def _write_script(self) -> Path:
        user = self._spec["securityContext"]["runAsUser"]
        group = self._spec["securityContext"]["runAsGroup"]
        root = self._image
        # The environment is the pod's already; the tools below are this machine's.
        lines = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", f"mount --bind {root} {root}"]
        for source, target, options in self._mounts():
            self._mount_point(target)
            lines.append(f"mount --bind {source} {root}{target}")
            lines += [f"mount -o remount,bind,{options} {root}{target}"] * bool(options)
        assert self._container["securityContext"]["readOnlyRootFilesystem"] is True
        lines += [
            f"mount -o remount,bind,ro {root}",
            f"mount --bind /dev {root}/dev",
            f"mount -t proc proc {root}/proc",
        ]
        command = [*self._container["command"], *self._container.get("args", ())]
        lines.append(f"PATH={IMAGE_PATH}")
        lines.append(
            shlex.join(
                [
                    *("exec", _program("setpriv"), "--no-new-privs"),
                    *(_program("timeout"), "--kill-after=10", str(MAX_LIFE_SECONDS)),
                    *(_program("chroot"), f"--userspec={user}:{group}", "--groups="),
                    str(root),
                    *(self._expanded(self._on_loopback(word)) for word in command),
                ]
            )
        )
        script = self._home / "pod.sh"
        script.touch(mode=0o600)
        script.write_text("\n".join(lines) + "\n")
        return script

    def _mounts(self) -> list[tuple[Path, str, str]]:
        mounts = [(self._service_account(), SERVICE_ACCOUNT, "ro")]
        volumes = {volume["name"]: volume for volume in self._spec.get("volumes", ())}
        for mount in self._container.get("volumeMounts", ()):
            source = self._volume(volumes[mount["name"]])
            mounts.append(
                (source, mount["mountPath"], "ro" * mount.get("readOnly", False))
            )
        return mounts

    def _service_account(self) -> Path:
        token = self._plane.service_account_token(
            self.namespace, self._spec["serviceAccountName"]
        )
        files = {
            "token": token.encode(),
            "ca.crt": self._plane.ca.certificate_pem,
            "namespace": self.namespace.encode(),
        }
        return self._files("serviceaccount", files)

    def _volume(self, volume: dict[str, Any]) -> Path:
        if "emptyDir" in volume:
            directory = self._files(volume["name"], {})
            os.chown(directory, -1, self._spec["securityContext"]["fsGroup"])
            directory.chmod(0o2777)  # as a kubelet makes it
            return directory
        if "secret" in volume:
            data = self._object("secrets", volume["secret"]["secretName"])
            return self._files(volume["name"], data)
        data = self._object("configmaps", volume["configMap"]["name"])
        return self._files(volume["name"], data)

    def _files(self, name: str, files: dict[str, bytes]) -> Path:
        directory = self._home / name
        directory.mkdir(exist_ok=True)
        for file, content in files.items():
            (directory / file).write_bytes(content)
        return directory

    def _object(self, resource: str, name: str) -> dict[str, bytes]:
        path = f"/api/v1/namespaces/{self.namespace}/{resource}/{name}"
        status, answer = self._plane.request("GET", path)
        if status == 404:
            return {}
        assert status == 200, answer
        data = answer.get("data") or {}
        if resource == "configmaps":
            return {key: text.encode() for key, text in data.items()}
        return {key: base64.b64decode(text) for key, text in data.items()}

    def _environment(self) -> dict[str, str]:
        result = {
            "PATH": IMAGE_PATH,
            "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._plane.port),
            "PYTHONUNBUFFERED": "1",
        }
        for entry in self._container.get("env", ()):
            value = self._value(entry)
            if value is not None:
                result[entry["name"]] = value
        return result

    def _value(self, entry: dict[str, Any]) -> str | None:
        source = entry.get("valueFrom", {})
        if "secretKeyRef" in source:
            wanted = source["secretKeyRef"]
            value = self._object("secrets", wanted["name"]).get(wanted["key"])
            assert value is not None or wanted.get("optional"), f"no {wanted}"
            return None if value is None else value.decode().strip()
        if "fieldRef" in source:
            fields = {
                "metadata.namespace": self.namespace,
                "metadata.name": self.name,
                "status.podIP": "127.0.0.1",
            }
            return fields[source["fieldRef"]["fieldPath"]]
        return self._on_loopback(str(entry["value"]))

    def _on_loopback(self, text: str) -> str:
        return _ALL_INTERFACES.sub(lambda match: self._ours(int(match[1])), text)

    def _ours(self, port: int) -> str:
        if port not in self.ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.ports[port] = probe.getsockname()[1]
        return f"127.0.0.1:{self.ports[port]}"

    @staticmethod
    def _expanded(text: str) -> str:
        assert not re.search(r"(?<!\$)\$\(", text), f"a variable in {text}"
        return text.replace("$$", "$")

    def _mount_point(self, path: str) -> None:
        # In the image's folder, as a runtime makes them too; empty, so it does not matter.
        (self._image / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
