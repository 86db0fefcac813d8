"""Where the host's apiserver is, and how we authenticate: the pod's ServiceAccount, or a kubeconfig.

All forms of a kubeconfig that the library knows work, exec plugins included: it is the admin's own
file. Tokens that the kubelet or a plugin renews are read again by the library.
"""

from pathlib import Path
from typing import Any

import yaml
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_kube_config_from_dict
from kubernetes.aio.config.incluster_config import InClusterConfigLoader

from shared.version import VERSION

__all__ = ["SERVICE_ACCOUNT_DIRECTORY", "NoAccess", "current_namespace", "open_access"]

SERVICE_ACCOUNT_DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# A page of a list, or a whole object in a watch, fits in: aiohttp pauses reading beyond, and a
# paused TLS transport of uvloop loses data. Only what arrives unread counts against it.
READ_BUFFER_BYTES = 32 * 1024 * 1024

# Requests at a time; the rest queues. Watches count: there are a handful.
MAX_CONNECTIONS = 32


class NoAccess(Exception):
    """We do not know how to reach the host's apiserver; the sentence says what to give us."""


async def open_access(kubeconfig: Path | None) -> ApiClient:
    """Read the kubeconfig, or without one what the pod was given; nothing is sent yet.

    Raises:
        NoAccess: If it is not there or cannot be read.
    """
    configuration = Configuration(
        client_session_kwargs={"read_bufsize": READ_BUFFER_BYTES}
    )
    configuration.connection_pool_maxsize = MAX_CONNECTIONS
    if kubeconfig is None:
        _load_service_account(configuration)
    else:
        await _load_kubeconfig(kubeconfig, configuration)
    client = ApiClient(configuration)
    client.user_agent = f"tower-server/{VERSION}"
    return client


def current_namespace() -> str | None:
    """The namespace that the pod runs in; None outside of a pod."""
    try:
        text = (SERVICE_ACCOUNT_DIRECTORY / "namespace").read_text()
    except OSError:
        return None
    return text.strip() or None


def _load_service_account(configuration: Configuration) -> None:
    loader = InClusterConfigLoader(
        token_filename=str(SERVICE_ACCOUNT_DIRECTORY / "token"),
        cert_filename=str(SERVICE_ACCOUNT_DIRECTORY / "ca.crt"),
    )
    try:
        loader.load_and_set(configuration)
    except (ConfigException, OSError) as error:
        raise NoAccess(
            f"This is no pod with a ServiceAccount ({error}): outside of Kubernetes, give a "
            "kubeconfig of the host cluster with --host-kubeconfig."
        ) from error


async def _load_kubeconfig(path: Path, configuration: Configuration) -> None:
    try:
        document = _read_kubeconfig(path)
        await load_kube_config_from_dict(document, client_configuration=configuration)
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        ConfigException,
        yaml.YAMLError,
    ) as error:
        # A parser's error quotes the file, which holds keys.
        reason = type(error).__name__ if isinstance(error, yaml.YAMLError) else error
        raise NoAccess(
            f"The kubeconfig {path} cannot be used ({reason}): give one of the host cluster "
            "with --host-kubeconfig."
        ) from None


def _read_kubeconfig(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    if not isinstance(document, dict):
        raise ValueError("it is no kubeconfig")
    # Paths in a kubeconfig are relative to its own directory.
    directory = path.absolute().parent
    for section, kind in (("clusters", "cluster"), ("users", "user")):
        for entry in document.get(section) or ():
            fields = entry.get(kind) or {}
            for name in _FILES & fields.keys():
                fields[name] = str(directory / fields[name])
    return document


_FILES = {"certificate-authority", "client-certificate", "client-key", "tokenFile"}
