"""Which requests are answered: those of the page itself. Scripts of other sites are refused."""

from __future__ import annotations

import ipaddress
import json
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_QUESTION = 64 * 1024  # bytes of a request's body, but for pictures
HEADERS = {
    # The page loads nothing from other hosts and nothing inline, and no frame may hold it.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def host_of(header: str) -> str:
    """The host in a Host header or behind an origin's ``//``, without its port, in lower case.

    Example:
        >>> from torchdcn.web.safety import host_of
        >>> host_of("localhost:8000"), host_of("[::1]:8000")
        ('localhost', '::1')
    """
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if ":" in header else header


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Answers 403 to requests that are not the page's own, 413 to large ones, and adds headers to every answer.

    Another site in the same browser can point its own name at 127.0.0.1 (DNS rebinding) and read the answers. Therefore
    the name in the request must be this machine's. It can also send requests without reading the answers. Therefore
    requests that change anything must come from the page, as the browser's headers say.

    Args:
        app: The application behind the guard.
        host: The address that the server listens at.
        upload: The path that takes larger bodies.
    """

    def __init__(self, app: App, host: str, upload: str) -> None:
        self._app = app
        self._upload = upload
        self._names = {*LOOPBACK, host.lower()}
        # A server that is open to others is reached by this machine's address or name; neither can be another site's.
        self._open = not is_loopback(host)
        if self._open:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # web sockets: there are none here
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", [])}
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in names]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_guarded)
            return
        status, text = refusal
        body = json.dumps({"error": text}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send_guarded({"type": "http.response.start", "status": status, "headers": headers})
        await send_guarded({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        asked = headers.get("host", "")
        if not self._is_ours(host_of(asked)):
            return 403, f"host: {asked[:100]!r} is not this server's name; open it as http://127.0.0.1:PORT"
        if scope["method"] in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        if origin is not None and origin.partition("//")[2].lower() != asked.lower():
            return 403, "origin: requests from other sites are refused"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "origin: requests from other sites are refused"
        if scope["path"] != self._upload:
            length = headers.get("content-length", "")
            if not length.isdigit():
                return 411, "content-length: expected, as the body's size is checked before it is read"
            if int(length) > MAX_QUESTION:
                return 413, f"body: more than {MAX_QUESTION} bytes"
        return None

    def _is_ours(self, host: str) -> bool:
        if host in self._names:
            return True
        if not self._open:
            return False
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True
