"""How a new token is handed out: the bare join string, a member's manifest, or an env file. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from certs.joining import JoinString
from certs.names import parse_principal
from tower_server.manifest import (
    ADMIN_GROUP,
    ADMIN_USER,
    DEFAULT_IMAGE,
    MemberManifest,
    env_file,
)

__all__ = ["Format", "TokenForm", "parse_token_form"]

Format = Literal["string", "manifest", "env"]

# Registries refuse longer ones: 255 bytes of name, 128 of tag, a digest of 135.
MAX_IMAGE_BYTES = 512
# What occurs in a reference: host, port, path, tag, digest. Whether it exists, only a registry knows.
_IMAGE = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:/@+\[\]-]*")


@dataclass(frozen=True, kw_only=True)
class TokenForm:
    """What is written around a join string."""

    format: Format
    # Of a manifest only: as whom the host may act in the member, and the agent's image.
    allow_users: tuple[str, ...] = (ADMIN_USER,)
    allow_groups: tuple[str, ...] = (ADMIN_GROUP,)
    image: str = DEFAULT_IMAGE

    def fields(self, join: JoinString) -> dict[str, str]:
        """Return the one field of the answer that has the token. Its value contains the secret."""
        match self.format:
            case "string":
                return {"join_string": join.format()}
            case "env":
                return {"env": env_file(join)}
            case "manifest":
                manifest = MemberManifest(
                    join=join,
                    image=self.image,
                    allow_users=self.allow_users,
                    allow_groups=self.allow_groups,
                )
                return {"manifest": manifest.to_yaml()}


def parse_token_form(
    format_name: str | None,
    *,
    allow_users: Sequence[str] = (),
    allow_groups: Sequence[str] = (),
    image: str | None = None,
) -> TokenForm:
    """Check what an admin asked for, and put defaults where nothing is said.

    Users and groups replace the default of their kind, as those of `tower-agent run` do.

    Raises:
        ValueError: One sentence that says what is wrong and what to write instead.
    """
    wanted = "string" if format_name is None else format_name
    names: tuple[Format, ...] = get_args(Format)
    form = next((name for name in names if name == wanted), None)
    if form is None:
        raise ValueError(f"{wanted!r} is not a form of a token: use {', '.join(names)}")
    if form != "manifest" and (allow_users or allow_groups or image is not None):
        raise ValueError(
            "only a manifest has allowed users and groups and an image in it: ask for the format 'manifest', "
            "or start the agent with `tower-agent run --allow-user USER --allow-group GROUP`"
        )
    return TokenForm(
        format=form,
        allow_users=_principals(allow_users) or (ADMIN_USER,),
        allow_groups=_principals(allow_groups) or (ADMIN_GROUP,),
        image=DEFAULT_IMAGE if image is None else _image(image),
    )


def _principals(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parse_principal(name) for name in names))


def _image(reference: str) -> str:
    if len(reference) > MAX_IMAGE_BYTES or not _IMAGE.fullmatch(reference):
        raise ValueError(
            f"{reference[:80]!r} is not the reference of an image: write one like "
            "registry.example.com/tower-agent:1.2.3"
        )
    return reference
