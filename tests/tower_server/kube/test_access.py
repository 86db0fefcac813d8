"""Covered: kubeconfigs with files beside them, broken and missing ones (nothing of them is quoted), no pod."""

from pathlib import Path

import pytest
import yaml

from tower_server.kube import access
from tower_server.kube.access import NoAccess, current_namespace, open_access

CONFIG = {
    "current-context": "c",
    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {"tokenFile": "the-token"}}],
}


async def test_files_lie_beside_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "the-token").write_text("t0ken")
    path = tmp_path / "k"
    path.write_text(yaml.safe_dump(CONFIG))
    client = await open_access(path)
    assert client.configuration.host == "https://127.0.0.1:1"
    token = await client.configuration.get_api_key_with_prefix("BearerToken")
    assert token is not None and token.endswith("t0ken")
    await client.close()


@pytest.mark.parametrize(
    "text", ["", "[]", "a: {", "clusters: 3", "users: [{name: u, user: s3cret}]", "\0"]
)
async def test_a_broken_one_is_refused_and_not_quoted(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "k"
    path.write_text(text)
    with pytest.raises(NoAccess, match="--host-kubeconfig") as caught:
        await open_access(path)
    assert "s3cret" not in str(caught.value)


async def test_a_missing_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoAccess, match=str(tmp_path / "none")):
        await open_access(tmp_path / "none")


async def test_outside_of_a_pod_a_kubeconfig_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "SERVICE_ACCOUNT_DIRECTORY", tmp_path)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(NoAccess, match="no pod"):
        await open_access(None)
    assert current_namespace() is None
    (tmp_path / "namespace").write_text("tower\n")
    assert current_namespace() == "tower"
