"""The test bed itself: it comes up, single processes die and return, and nothing outlives its maker.

Aspects: audit log, kill and restart, death of the process that started it, use from a thread
that ends, refusal of a folder in use.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from tests.testbed.controlplane import ControlPlane, ControlPlaneFailed
from tests.testbed.processes import Processes, ProcessFailed

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.fixture
def processes(tmp_path: Path):
    processes = Processes(tmp_path)
    yield processes
    processes.close()


def test_a_process_that_ended_is_reported_with_the_end_of_its_log(processes) -> None:
    processes.start("broken", [sys.executable, "-c", "print('no such luck'); exit(3)"])
    processes.kill("broken", signal.SIGCONT)  # waits for its end
    with pytest.raises(ProcessFailed, match="no such luck"):
        processes.check("broken")


def test_a_program_that_does_not_exist_is_an_error_of_its_start(processes) -> None:
    with pytest.raises(ProcessFailed, match="no-such-program"):
        processes.start("absent", ["/no-such-program"])


def test_a_second_start_under_the_same_name_is_refused(processes) -> None:
    processes.start("sleeper", SLEEPER)
    with pytest.raises(ProcessFailed, match="runs already"):
        processes.start("sleeper", SLEEPER)


def test_processes_survive_the_thread_that_started_them(processes) -> None:
    thread = threading.Thread(target=processes.start, args=("sleeper", SLEEPER))
    thread.start()
    thread.join()
    assert processes.running("sleeper")


def test_close_also_ends_what_a_process_left_behind(processes) -> None:
    script = "sleep 600 & echo $!; exec sleep 600"
    processes.start("shell", ["/bin/sh", "-c", script])
    while not (text := processes.log_path("shell").read_text()).strip():
        assert processes.running("shell")
    orphan = int(text)
    processes.kill("shell")
    assert alive(orphan)
    processes.close()
    assert not alive(orphan)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
@pytest.mark.parametrize("victim", ["maker", "supervisor"])
def test_nothing_survives_a_killed_maker_or_supervisor(
    tmp_path: Path, victim: str
) -> None:
    program = f"""
import pathlib, sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.testbed.processes import Processes
processes = Processes(pathlib.Path({str(tmp_path)!r}))
print(processes.start("sleeper", {SLEEPER!r}), processes._supervisor.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as maker:
        sleeper, supervisor = map(int, maker.stdout.readline().split())
        watch = os.pidfd_open(sleeper)
        assert alive(sleeper)
        os.kill(maker.pid if victim == "maker" else supervisor, signal.SIGKILL)
        signal_waited = _wait_for_end(watch)
        maker.kill()
    assert signal_waited, "the process outlived its maker"


def _wait_for_end(pidfd: int, timeout_seconds: float = 10.0) -> bool:
    readable, _, _ = select.select([pidfd], [], [], timeout_seconds)
    os.close(pidfd)
    return bool(readable)


@pytest.mark.e2e
def test_the_audit_log_names_the_impersonated_user(member_a: ControlPlane) -> None:
    command = [member_a.kubectl, "--kubeconfig", member_a.kubeconfig]
    subprocess.run([*command, "get", "pods", "--as=somebody-else"], capture_output=True)
    users = [event.get("impersonatedUser", {}) for event in member_a.audit_events()]
    assert "somebody-else" in [user.get("username") for user in users]


@pytest.mark.e2e
@pytest.mark.parametrize("process", ["etcd", "kube-apiserver"])
def test_a_killed_process_comes_back_with_its_data(
    member_a: ControlPlane, process: str
) -> None:
    path = "/api/v1/namespaces/default/configmaps"
    name = f"survivor-of-{process}"
    member_a.request("POST", path, {"metadata": {"name": name}})
    before = member_a.pid(process)
    member_a.kill(process)
    member_a.restart(process)
    member_a.wait_ready()
    assert member_a.pid(process) != before
    assert member_a.request("DELETE", f"{path}/{name}")[0] == 200


@pytest.mark.e2e
def test_a_folder_in_use_is_refused(member_a: ControlPlane) -> None:
    with pytest.raises(ControlPlaneFailed, match="in use"):
        ControlPlane("other", member_a.directory).start()


@pytest.mark.e2e
def test_port_forward_reaches_the_target_of_its_own_control_plane(
    member_a: ControlPlane,
) -> None:
    pod = {
        "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "web", "image": "none"}]},
    }
    pods = "/api/v1/namespaces/default/pods"
    assert member_a.request("POST", pods, pod)[0] == 201
    command = [member_a.kubectl, "--kubeconfig", member_a.kubeconfig]
    subprocess.run(
        [*command, "wait", "--for=condition=Ready", "pod/web", "--timeout=30s"],
        check=True,
    )
    try:
        with subprocess.Popen(
            [*command, "port-forward", "pod/web", ":80", "--address=127.0.0.1"],
            stdout=subprocess.PIPE,
            text=True,
        ) as forward:
            line = forward.stdout.readline()
            port = int(line.split(":")[1].split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as response:
                text = response.read().decode()
            forward.kill()
        assert text == "hello from the port-forward target of member-a\n"
    finally:
        member_a.request("DELETE", f"{pods}/web")
