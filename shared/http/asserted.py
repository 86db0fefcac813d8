"""An identity that another end of ours vouches for: how it is written, and how it is read.

Inside the mutual TLS between server and agent the server says with each request whose it
is, in `X-Remote-User` and `X-Remote-Group`, as Kubernetes' own front proxies do. Both
names are dropped from every caller's request on every face (identity.py); here, where
nobody but a server of ours can speak, they are demanded.
"""

from collections.abc import Callable, Iterable

from shared.http.heads import RequestHead, parse_request_head
from shared.http.identity import Caller, check_name
from shared.http.status import Refusal
from shared.http.translation import SECRET_FIELDS, Outgoing, Translator

__all__ = ["MAX_ASSERTED_GROUPS", "AssertedTranslator", "asserted_lines"]

_USER, _GROUP = b"x-remote-user", b"x-remote-group"

# As many as a user certificate may have (certs.names.MAX_GROUPS); tokens of large
# companies name hundreds, of which the member's policy allows a handful.
MAX_ASSERTED_GROUPS = 128

# Heads whose caller is known already: clients repeat them to the byte, but for the path.
_MAX_KNOWN = 64
# As in translation.py, and the identity.
_MAX_KNOWN_BYTES = 4096


def asserted_lines(user: str, groups: Iterable[str]) -> bytes:
    """The lines that say whose request it is.

    Raises:
        Refusal: If a name cannot stand in a field, or there are too many.
    """
    groups = tuple(groups)
    if len(groups) > MAX_ASSERTED_GROUPS:
        raise Refusal(
            code=403,
            message=f"user {user!r} has more than {MAX_ASSERTED_GROUPS} groups",
        )
    try:
        for name in (user, *groups):
            check_name(name)
    except ValueError as error:
        raise Refusal(code=403, message=str(error)) from None
    lines = [f"X-Remote-User: {user}\r\n"]
    lines += [f"X-Remote-Group: {group}\r\n" for group in groups]
    return "".join(lines).encode()


def _asserted_caller(head: RequestHead, cluster: str) -> Caller:
    """Whose request it is.

    Raises:
        Refusal: If the head does not say it exactly once.
    """
    users, groups = [], []
    for name, value in head.fields:
        lower = name.lower()
        if lower == _USER:
            users.append(value)
        elif lower == _GROUP:
            groups.append(value)
    if len(users) != 1 or len(groups) > MAX_ASSERTED_GROUPS:
        raise Refusal(code=401, message="the server does not say whose request this is")
    try:
        user, *names = (value.decode() for value in (*users, *groups))
        for name_ in (user, *names):
            check_name(name_)
    except ValueError as error:
        raise Refusal(code=401, message=f"the asserted identity: {error}") from None
    return Caller(user=user, groups=tuple(names), cluster=cluster)


class AssertedTranslator:
    """Translates heads of many callers that come over one connection."""

    __slots__ = ("_cluster", "_find", "_known", "_refusal")

    def __init__(
        self,
        cluster: str,
        find: Callable[[Caller], Translator],
        refusal: Callable[[], Refusal | None],
    ) -> None:
        """Prepare.

        Args:
            find: The translator of a caller.
            refusal: What every request is answered with, if that is so at the moment.
        """
        self._cluster = cluster
        self._find = find
        self._refusal = refusal
        # By everything of a head but its request line, the identity included.
        self._known: dict[bytes, Translator] = {}

    def forget(self) -> None:
        """Translators have been replaced: ask for each anew."""
        self._known.clear()

    def __call__(self, raw: bytes) -> Outgoing:
        refusal = self._refusal()
        if refusal is not None:
            raise Refusal(code=refusal.code, message=refusal.message)
        fields = raw[raw.find(b"\r\n") + 2 :]
        translator = self._known.get(fields)
        if translator is None:
            head = parse_request_head(raw)
            translator = self._find(_asserted_caller(head, self._cluster))
            has_secret = any(name.lower() in SECRET_FIELDS for name, _ in head.fields)
            if len(fields) <= _MAX_KNOWN_BYTES and not has_secret:
                if len(self._known) >= _MAX_KNOWN:
                    del self._known[next(iter(self._known))]
                self._known[fields] = translator
        return translator(raw)
