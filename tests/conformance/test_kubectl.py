"""What kubectl does works the same against the demo apiserver and against a real one.

Aspects: tables, apply/patch/delete, watches, logs, exec (stdin, exit code, separate streams,
terminal), cp, wait, RBAC refusals, --as, can-i, tokens.
"""

import fcntl
import hashlib
import os
import pty
import select
import struct
import subprocess
import termios
from pathlib import Path

import pytest
import yaml

from tests.conformance.conftest import POD, Member


def configmap(name: str, **data: str) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": data,
        }
    )


def out(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_get_nodes_prints_a_table_of_ready_nodes(member: Member) -> None:
    header, *rows = out(member.kubectl("get", "nodes")).splitlines()
    assert header.split() == ["NAME", "STATUS", "ROLES", "AGE", "VERSION"]
    assert rows and all(row.split()[1] == "Ready" for row in rows)


def test_get_pods_of_all_namespaces_has_a_namespace_column(member: Member) -> None:
    header, *rows = out(member.kubectl("get", "pods", "-A")).splitlines()
    assert header.split() == ["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    runner = next(row.split() for row in rows if f" {POD} " in row)
    assert runner[:5] == ["conformance", POD, "1/1", "Running", "0"]


@pytest.mark.parametrize(
    ("resource", "columns"),
    [
        ("namespaces", ["NAME", "STATUS", "AGE"]),
        ("configmaps", ["NAME", "DATA", "AGE"]),
    ],
)
def test_tables_have_the_columns_of_their_kind(
    member: Member, resource: str, columns: list[str]
) -> None:
    assert out(member.kubectl("get", resource)).splitlines()[0].split() == columns


def test_wide_output_adds_columns(member: Member) -> None:
    header = out(member.kubectl("get", "pods", "-o", "wide")).splitlines()[0]
    assert header.split("   ")[-1].strip() == "READINESS GATES"


def test_apply_creates_then_configures_then_changes_nothing(member: Member) -> None:
    assert "created" in out(
        member.kubectl("apply", "-f", "-", stdin=configmap("applied", a="1", b="2"))
    )
    assert "configured" in out(
        member.kubectl("apply", "-f", "-", stdin=configmap("applied", a="3"))
    )
    assert "unchanged" in out(
        member.kubectl("apply", "-f", "-", stdin=configmap("applied", a="3"))
    )
    assert (
        out(member.kubectl("get", "cm", "applied", "-o", "jsonpath={.data}"))
        == '{"a":"3"}'
    )
    assert "deleted" in out(member.kubectl("delete", "cm", "applied"))


def test_a_dry_run_leaves_nothing(member: Member) -> None:
    result = member.kubectl(
        "create", "cm", "never", "--from-literal=a=b", "--dry-run=server"
    )
    assert "created (server dry run)" in out(result)
    assert 'configmaps "never" not found' in member.kubectl("get", "cm", "never").stderr


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        ("strategic", '{"data":{"a":"2","b":null}}'),
        ("merge", '{"data":{"a":"2","b":null}}'),
        (
            "json",
            '[{"op":"replace","path":"/data/a","value":"2"},{"op":"remove","path":"/data/b"}]',
        ),
    ],
)
def test_all_kinds_of_patches_work(member: Member, kind: str, patch: str) -> None:
    name = f"patched-{kind}"
    out(
        member.kubectl("create", "cm", name, "--from-literal=a=1", "--from-literal=b=1")
    )
    out(member.kubectl("patch", "cm", name, f"--type={kind}", "-p", patch))
    assert (
        out(member.kubectl("get", "cm", name, "-o", "jsonpath={.data}")) == '{"a":"2"}'
    )
    out(member.kubectl("delete", "cm", name))


def test_labels_select(member: Member) -> None:
    out(member.kubectl("create", "cm", "labelled", "--from-literal=a=1"))
    out(member.kubectl("label", "cm", "labelled", "tier=front"))
    for selector, found in (
        ("tier=front", True),
        ("tier!=front", False),
        ("tier in (front,back)", True),
        ("!tier", False),
    ):
        names = out(member.kubectl("get", "cm", "-l", selector, "-o", "name"))
        assert ("configmap/labelled" in names) is found, selector
    out(member.kubectl("delete", "cm", "labelled"))


def test_a_watch_shows_a_change_as_it_happens(member: Member) -> None:
    line = member.kubectl_line(
        "get", "cm", "-w", "-o", "name", "--field-selector=metadata.name=watched"
    )
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as watch:
        try:
            out(member.kubectl("create", "cm", "watched", "--from-literal=a=1"))
            assert watch.stdout is not None
            assert select.select([watch.stdout], [], [], 5)[0], "no event within 5 s"
            assert watch.stdout.readline() == "configmap/watched\n"
        finally:
            watch.kill()
    out(member.kubectl("delete", "cm", "watched"))


def test_logs_and_their_tail(member: Member) -> None:
    assert out(member.kubectl("logs", POD)).startswith(
        "hello from a fake pod\nsecond line\n"
    )
    assert len(out(member.kubectl("logs", POD, "--tail=2")).splitlines()) == 2


def test_following_logs_shows_a_line_when_it_is_written(member: Member) -> None:
    line = member.kubectl_line("logs", "-f", "--tail=0", POD)
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as follower:
        try:
            assert follower.stdout is not None
            for attempt in range(50):  # the follower may begin after the first lines
                out(
                    member.kubectl(
                        "exec", POD, "--", "sh", "-c", f"echo line {attempt} >>$LOG"
                    )
                )
                if select.select([follower.stdout], [], [], 0.1)[0]:
                    break
            assert follower.stdout.readline().startswith("line ")
        finally:
            follower.kill()


def test_exec_hands_on_exit_code_and_keeps_streams_apart(member: Member) -> None:
    result = member.kubectl(
        "exec", POD, "--", "sh", "-c", "echo out; echo err >&2; exit 7"
    )
    assert result.returncode == 7
    assert result.stdout == "out\n"
    assert result.stderr.startswith("err\n")


def test_exec_of_a_program_that_is_not_there_fails(member: Member) -> None:
    assert member.kubectl("exec", POD, "--", "no-such-program").returncode != 0


def test_exec_ends_the_commands_stdin(member: Member) -> None:
    text = "x" * 300_000
    result = member.kubectl("exec", "-i", POD, "--", "sha256sum", stdin=text)
    assert out(result).split()[0] == hashlib.sha256(text.encode()).hexdigest()


def test_exec_with_a_terminal_has_its_size(member: Member) -> None:
    # Waits until the size has come: it follows the start of the command.
    script = (
        'until [ "$(stty size)" = "40 132" ]; do sleep 0.05; done; echo size is right'
    )
    pid, descriptor = pty.fork()
    if pid == 0:
        line = member.kubectl_line(
            "exec", "-it", POD, "--", "timeout", "20", "sh", "-c", script
        )
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 132, 0, 0))
        os.execv(line[0], line)
    text = b""
    try:
        while data := os.read(descriptor, 4096):
            text += data
    except OSError:  # EIO: the other end is closed
        pass
    os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, text
    assert b"size is right" in text


def test_cp_works_both_ways(member: Member, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(500_000))
    out(member.kubectl("cp", str(there), f"{POD}:copied"))
    out(member.kubectl("cp", f"{POD}:copied", str(back)))
    assert back.read_bytes() == there.read_bytes()


def test_a_new_pod_becomes_ready_and_goes(member: Member) -> None:
    out(member.kubectl("run", "short", "--image=example.com/none"))
    out(member.kubectl("wait", "--for=condition=Ready", "pod/short", "--timeout=30s"))
    assert "deleted" in out(member.kubectl("delete", "pod", "short", "--timeout=30s"))


def test_describe_knows_the_pods_node(member: Member) -> None:
    node = out(member.kubectl("get", "pod", POD, "-o", "jsonpath={.spec.nodeName}"))
    assert f"{node}/127.0.0.1" in out(member.kubectl("describe", "pod", POD))


def test_a_refusal_names_user_verb_and_resource(member: Member) -> None:
    result = member.kubectl(
        "get", "namespaces", kubeconfig=member.plane.alice_kubeconfig
    )
    assert result.returncode == 1
    assert result.stderr == (
        'Error from server (Forbidden): namespaces is forbidden: User "alice" cannot list'
        ' resource "namespaces" in API group "" at the cluster scope\n'
    )


def test_impersonation_needs_the_right_to_it(member: Member) -> None:
    allowed = member.kubectl(
        "auth",
        "whoami",
        "--as=bob",
        "--as-group=dev",
        "-o",
        "jsonpath={.status.userInfo}",
    )
    assert '"username":"bob"' in out(allowed)
    alice = member.kubectl(
        "get", "pods", "--as=bob", kubeconfig=member.plane.alice_kubeconfig
    )
    assert alice.returncode == 1
    # 1.36 and later name the constrained verb that is missing (impersonate-on:…), before: the user.
    assert 'User "alice" cannot impersonate' in alice.stderr


def test_a_client_certificate_gives_user_and_groups(member: Member) -> None:
    config = member.plane.client_kubeconfig("carol", ("dev", "ops"))
    result = member.kubectl(
        "auth",
        "whoami",
        "-o",
        "jsonpath={.status.userInfo['username','groups']}",
        kubeconfig=config,
    )
    assert out(result) == 'carol ["dev","ops","system:authenticated"]'


def test_can_i_answers_for_oneself_and_for_others(member: Member) -> None:
    assert out(member.kubectl("auth", "can-i", "delete", "pods")) == "yes\n"
    refused = member.kubectl("auth", "can-i", "delete", "pods", "--as=nobody")
    assert (refused.returncode, refused.stdout) == (1, "no\n")


def test_a_role_binding_takes_effect(member: Member) -> None:
    config = member.plane.client_kubeconfig("dave")
    assert member.kubectl("get", "cm", kubeconfig=config).returncode == 1
    out(
        member.kubectl(
            "create", "role", "reader", "--verb=get,list", "--resource=configmaps"
        )
    )
    out(
        member.kubectl(
            "create", "rolebinding", "reader", "--role=reader", "--user=dave"
        )
    )
    assert "kube-root-ca.crt" in out(member.kubectl("get", "cm", kubeconfig=config))
    assert (
        member.kubectl("delete", "cm", "kube-root-ca.crt", kubeconfig=config).returncode
        == 1
    )
    out(member.kubectl("delete", "rolebinding/reader", "role/reader"))


def test_a_service_account_token_is_an_identity(member: Member) -> None:
    token = out(member.kubectl("create", "token", "default")).strip()
    config = yaml.safe_load(member.plane.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    path = member.plane.kubeconfig.with_name("account.kubeconfig")
    path.write_text(yaml.safe_dump(config))
    who = member.kubectl(
        "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}", kubeconfig=path
    )
    assert out(who) == "system:serviceaccount:conformance:default"


def test_api_resources_lists_the_subset(member: Member) -> None:
    names = out(member.kubectl("api-resources", "-o", "name")).split()
    subset = {
        "configmaps",
        "deployments.apps",
        "namespaces",
        "nodes",
        "pods",
        "secrets",
        "serviceaccounts",
    }
    assert subset <= set(names)
