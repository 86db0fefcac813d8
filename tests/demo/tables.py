"""The last step of the demo: nodes, pods, an exec; with kubectl, or with the official Python client."""

import time
from pathlib import Path

from tests.demo.member import Member
from tests.demo.shell import Failed, Shell

__all__ = ["show"]

POD = "hello"
READY_SECONDS = 20.0


def show(shell: Shell, kubeconfig: Path, member: Member) -> None:
    if member.kubectl is not None:
        _with_kubectl(shell, kubeconfig, member.kubectl)
    else:
        shell.say("    (no kubectl here: the same with the official Python client)")
        _with_python(shell, kubeconfig)


def _with_kubectl(shell: Shell, kubeconfig: Path, kubectl: str) -> None:
    def run(*arguments: str, quiet: bool = False) -> str:
        if not quiet:
            shell.say(f"    $ kubectl {' '.join(arguments)}")
        output = shell.run([kubectl, *arguments], KUBECONFIG=str(kubeconfig))
        if not quiet:
            shell.say(output.rstrip() + "\n")
        return output

    run("get", "nodes")
    namespace, pod = _running_pod(run)
    run("get", "pods", "-A")
    run(
        "exec",
        "-n",
        namespace,
        pod,
        "--",
        "sh",
        "-c",
        "echo hello from $(pwd | xargs basename)",
    )


def _running_pod(run: "_Run") -> tuple[str, str]:
    """A pod to exec into: one that is there, or one that we start."""
    template = "{range .items[?(@.status.phase=='Running')]}{.metadata.namespace} {.metadata.name}{'\\n'}{end}"
    deadline = time.monotonic() + READY_SECONDS
    started = False
    while time.monotonic() < deadline:
        running = run("get", "pods", "-A", "-o", f"jsonpath={template}", quiet=True)
        words = running.split()
        if len(words) >= 2:
            return words[0], words[1]
        if not started:
            started = True
            run("run", POD, "--image=example.invalid/hello")
        time.sleep(0.2)
    raise Failed(f"no pod was Running after {READY_SECONDS:.0f} s")


class _Run:
    """The shape of `run` above, for the type checker."""

    def __call__(self, *arguments: str, quiet: bool = False) -> str:
        raise NotImplementedError


def _with_python(shell: Shell, kubeconfig: Path) -> None:
    import kubernetes
    from kubernetes.stream import stream

    client = kubernetes.config.new_client_from_config(str(kubeconfig))
    core = kubernetes.client.CoreV1Api(client)
    try:
        shell.say("    $ (get nodes)")
        for node in core.list_node().items:
            ready = next(c.status for c in node.status.conditions if c.type == "Ready")
            shell.say(
                f"{node.metadata.name:30} {'Ready' if ready == 'True' else 'NotReady'}"
            )
        shell.say("", "    $ (get pods -A)")
        pods = core.list_pod_for_all_namespaces().items
        for pod in pods:
            name = f"{pod.metadata.namespace}/{pod.metadata.name}"
            shell.say(f"{name:50} {pod.status.phase}")
        running = [pod for pod in pods if pod.status.phase == "Running"]
        if not running:
            raise Failed("the member has no running pod to exec into")
        meta = running[0].metadata
        shell.say("", f"    $ (exec {meta.name} -- echo hello)")
        answer = stream(
            core.connect_get_namespaced_pod_exec,
            meta.name,
            meta.namespace,
            command=["echo", "hello"],
            stdout=True,
            stderr=True,
            stdin=False,
            tty=False,
        )
        if answer != "hello\n":
            raise Failed(f"the exec answered {answer!r}")
        shell.say(answer.rstrip())
    finally:
        client.close()
