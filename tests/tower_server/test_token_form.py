"""How a token is handed out: defaults, the agent's rules for names, images, and what belongs to a manifest only."""

import pytest
import yaml

from certs.joining import JoinString, new_token
from certs.names import parse_cluster_name
from tower_server.token_form import TokenForm, parse_token_form


@pytest.fixture
def join() -> JoinString:
    token_id, secret = new_token()
    return JoinString(
        cluster=parse_cluster_name("alpha"),
        host="tower.example.com",
        port=8443,
        token_id=token_id,
        secret=secret,
        pin="sha256:" + "ab" * 32,
    )


def test_the_bare_join_string_is_what_one_gets_without_asking(join: JoinString) -> None:
    assert parse_token_form(None).fields(join) == {"join_string": join.format()}


def test_a_manifest_without_wishes_allows_the_default_user_and_group() -> None:
    assert parse_token_form("manifest") == TokenForm(format="manifest")


def test_users_replace_the_default_user_and_leave_the_default_group() -> None:
    form = parse_token_form("manifest", allow_users=["jane", "joe", "jane"])
    assert form.allow_users == ("jane", "joe")
    assert form.allow_groups == ("tower:cluster-admins",)


def test_users_groups_and_image_are_in_the_manifest(join: JoinString) -> None:
    form = parse_token_form(
        "manifest",
        allow_users=["jane"],
        allow_groups=["dev"],
        image="registry.example.com:5000/x/agent:1.2@sha256:" + "0" * 64,
    )
    objects = list(yaml.safe_load_all(form.fields(join)["manifest"]))
    (role,) = [item for item in objects if item["kind"] == "ClusterRole"]
    (deployment,) = [item for item in objects if item["kind"] == "Deployment"]
    names = [rule.get("resourceNames") for rule in role["rules"][:2]]
    assert names == [["jane"], ["dev"]]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"--allow-user=jane", "--allow-group=dev"} <= set(container["args"])
    assert container["image"] == form.image


@pytest.mark.parametrize("name", ["", " jane", "ja\nne", "x" * 257])
def test_a_name_that_the_agent_would_refuse_is_refused_here(name: str) -> None:
    with pytest.raises(ValueError, match="user or group"):
        parse_token_form("manifest", allow_users=[name])
    with pytest.raises(ValueError, match="user or group"):
        parse_token_form("manifest", allow_groups=["dev", name])


@pytest.mark.parametrize("image", ["", "a b", "-x", "x\ny", "x" * 513, "$(IMAGE)"])
def test_what_cannot_be_an_image_is_refused(image: str) -> None:
    with pytest.raises(ValueError, match="reference of an image"):
        parse_token_form("manifest", image=image)


@pytest.mark.parametrize("format_name", [None, "string", "env"])
@pytest.mark.parametrize(
    "wish", [{"allow_users": ["jane"]}, {"allow_groups": ["dev"]}, {"image": "x"}]
)
def test_other_forms_have_no_place_for_names_and_images(
    format_name: str | None, wish: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="tower-agent run --allow-user"):
        parse_token_form(format_name, **wish)


@pytest.mark.parametrize("format_name", ["", "yaml", "Manifest"])
def test_an_unknown_form_names_the_known_ones(format_name: str) -> None:
    with pytest.raises(ValueError, match="use string, manifest, env"):
        parse_token_form(format_name)
