"""kubectl through the tunnel: every step works, and says what it says at the member itself.

Covered: get, describe, apply, patch, replace, delete, server-side apply, watch within a
second, logs, exec (stdin, terminal, exit code), attach, cp, port-forward, impersonation,
can-i, discovery, explain, large lists, wait; exec and its kin by WebSocket and by SPDY.
"""

import dataclasses
import difflib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kinds import DIRECT_GATEWAY, WAYS
from tests.e2e.kubectl import Kubectl, normalised
from tests.e2e.member import Member
from tests.e2e.script import SCRIPT, Scene, Step, watch_sees_events_at_once
from tests.e2e.streaming import (
    PROTOCOLS,
    STREAMING,
    exec_hands_everything_on,
    protocols_used,
    target,
)

# Each step gets namespaces that no other step had.
_numbers = itertools.count()


@pytest.fixture(scope="module")
def target_port() -> Iterator[int]:
    with target() as port:
        yield port


@pytest.fixture
def scene(alpha: Member, tmp_path: Path, target_port: int) -> Scene:
    return Scene(
        member=alpha, namespace="", directory=tmp_path, target_port=target_port
    )


def play(step: Step, kubectl: Kubectl, scene: Scene) -> str:
    """Run a step in the scene's new namespace; returns its normalised transcript."""
    kubectl.quiet("create", "namespace", scene.namespace)
    kubectl.quiet("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    kubectl.quiet("wait", "--for=create", "configmap/kube-root-ca.crt", "--timeout=30s")
    try:
        step(kubectl, scene)
    finally:
        kubectl.quiet("delete", "namespace", scene.namespace, "--wait=false")
    return normalised("".join(kubectl.transcript), namespace=scene.namespace)


def play_both(
    step: Step, direct: Kubectl, tunnelled: Kubectl, scene: Scene, **environment: str
) -> tuple[str, str]:
    """The step directly and through the tunnel; returns the two namespaces.

    Raises:
        AssertionError: If the transcripts differ, with the difference.
    """
    number = next(_numbers)
    # Of one length: kubectl aligns tables by it.
    namespaces = f"step-{number}-direct", f"step-{number}-tunnel"
    here, there = (
        play(
            step,
            kubectl.variant(namespace=namespace, **environment),
            dataclasses.replace(scene, namespace=namespace),
        )
        for kubectl, namespace in zip((direct, tunnelled), namespaces, strict=True)
    )
    if here != there:
        difference = difflib.unified_diff(
            here.splitlines(), there.splitlines(), "direct", "tunnel", lineterm=""
        )
        raise AssertionError("\n".join(difference))
    return namespaces


@WAYS
@pytest.mark.parametrize("step", SCRIPT, ids=lambda step: step.__name__)
def test_kubectl_says_the_same_through_the_tunnel(
    step: Step, direct: Kubectl, tunnelled: Kubectl, scene: Scene
) -> None:
    play_both(step, direct, tunnelled, scene)


@DIRECT_GATEWAY
@pytest.mark.parametrize("step", [watch_sees_events_at_once, exec_hands_everything_on])
def test_the_gateway_leads_to_a_direct_cluster_as_well(
    step: Step, direct: Kubectl, tunnelled: Kubectl, scene: Scene
) -> None:
    play_both(step, direct, tunnelled, scene)


@WAYS
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("step", STREAMING, ids=lambda step: step.__name__)
def test_streams_are_the_same_through_the_tunnel(
    step: Step, protocol: str, direct: Kubectl, tunnelled: Kubectl, scene: Scene
) -> None:
    namespaces = play_both(step, direct, tunnelled, scene, **PROTOCOLS[protocol])
    for namespace in namespaces:
        assert protocols_used(scene.member, namespace) == {protocol}
