"""One question to the Hub, and what its refusals mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import sleep
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from edgevlm.errors import EdgeVLMError, HubError, HubUnreachableError, SourceNotFoundError
from edgevlm.hub.name import HubName
from edgevlm.progress import Note

if TYPE_CHECKING:
    from httpx2 import Response

_T = TypeVar("_T")
_TRIES = 5
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_OWN_WAIT_SECONDS = 8.0
# The Hub counts requests in windows of five minutes.
_LONGEST_ASKED_WAIT_SECONDS = 330.0
_SHOWN_CHARACTERS = 200
_LATER_STATUS = frozenset({408, 429, 500, 502, 503, 504})


class Again(Exception):
    """No answer, or one that may be better in a moment.

    Args:
        why: what went wrong.
        seconds: how long the server asks to wait.
        is_unreachable: no connection came about.
    """

    def __init__(self, why: str, *, seconds: float | None = None, is_unreachable: bool = False):
        super().__init__(why)
        self.why = why
        self.seconds = seconds
        self.is_unreachable = is_unreachable


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A repository of a Hub, and how it is asked.

    Attributes:
        name: the repository.
        endpoint: the Hub's address.
        headers: with the token, where there is one.
        note: told about waiting.
    """

    name: HubName
    endpoint: str
    headers: Mapping[str, str]
    note: Note

    @property
    def page(self) -> str:
        """The address of the repository's page."""
        return f"{self.endpoint}/{self.name.repo}"

    @property
    def has_token(self) -> bool:
        """Whether a token is sent."""
        return "authorization" in self.headers

    def api(self, rest: str) -> str:
        """Return an address of the API, `rest` behind the repository's own."""
        return f"{self.endpoint}/api/models/{self.name.repo}{rest}"

    def file(self, name: str, commit: str) -> str:
        """Return the address of a file's bytes."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.name.repo, name, revision=commit, endpoint=self.endpoint)

    @contextmanager
    def answer(self, address: str, *, offset: int = 0) -> Generator[Response]:
        """Ask for `address`, from byte `offset` on; the body has not been read yet.

        A redirect to another host is followed without the token (httpx2).

        Raises:
            Again: no answer, a broken one, or one that asks to come back later.
            HubError: a refusal.
            SourceNotFoundError: no such repository, or revision.
        """
        from huggingface_hub import constants, get_session

        headers = {**self.headers, "accept-encoding": "identity"}
        if offset:
            headers["range"] = f"bytes={offset}-"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with (
            self._failures(),
            get_session().stream("GET", address, headers=headers, timeout=timeout) as response,
        ):
            if response.status_code >= 400:
                raise self._refusal(response)
            yield response

    def describe(self, name: str, commit: str) -> tuple[int | None, str | None]:
        """Return size and etag of a file, from its headers alone; it raises as `answer` does."""
        from huggingface_hub import (
            get_hf_file_metadata,  # pyright: ignore[reportUnknownVariableType]  # a bare `dict`
        )
        from huggingface_hub.errors import HfHubHTTPError

        with self._failures():
            try:
                found = get_hf_file_metadata(
                    self.file(name, commit), headers=dict(self.headers), endpoint=self.endpoint
                )
            except HfHubHTTPError as error:
                raise self._refusal(error.response) from None
        return found.size, found.etag

    @contextmanager
    def _failures(self) -> Generator[None]:
        """Tell failures that may pass from those that will not."""
        import httpx2

        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Again(_reason(error), is_unreachable=True) from error
        except (
            httpx2.TimeoutException,
            httpx2.NetworkError,
            httpx2.RemoteProtocolError,
        ) as error:
            raise Again(_reason(error)) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise HubError(
                f"cannot ask {self.endpoint} for `{self.name.repo}`: {_reason(error)}",
                hint="check HF_ENDPOINT, and the proxy's settings where there is one",
            ) from error

    def _refusal(self, response: Response) -> Exception:
        """Return what an answer of status 400 and above means.

        The codes are those of huggingface_hub's `hf_raise_for_status` (utils/_http.py); that
        function reads the whole body, however long it is.
        """
        status = response.status_code
        code = response.headers.get("X-Error-Code", "")
        said = response.headers.get("X-Error-Message", "")[:_SHOWN_CHARACTERS]
        if status in _LATER_STATUS:
            what = "too many requests" if status == 429 else f"HTTP {status}"
            return Again(what, seconds=_asked_wait(response.headers))
        if code == "GatedRepo":
            return self._gated()
        if code == "RevisionNotFound":
            return SourceNotFoundError(
                f"`{self.name.repo}` has no revision `{self.name.revision}`",
                hint=f"its branches and tags: {self.page}/refs",
            )
        if status == 401 and said.startswith("Invalid credentials"):
            return HubError(
                "the Hub does not accept the token",
                hint="check HF_TOKEN, or log in again: `hf auth login`",
            )
        # Behind a redirect, to where the bytes lie, 404 says nothing about the repository.
        is_hub = str(response.url).startswith(f"{self.endpoint}/")
        if code == "RepoNotFound" or (is_hub and not code and status in (401, 404)):
            return self._no_repository()
        return self._other(status, said)

    def _no_repository(self) -> EdgeVLMError:
        private = (
            "the token's account may not see it, where it is private"
            if self.has_token
            else "where it is private, set HF_TOKEN"
        )
        return SourceNotFoundError(
            f"no file or folder `{self.name.repo}`, and no such repository at {self.endpoint}",
            hint=f"check the spelling; {private}",
        )

    def _gated(self) -> EdgeVLMError:
        hint = f"accept its terms at {self.page}"
        return HubError(
            f"`{self.name.repo}` is gated: its terms must be accepted before it is downloaded",
            hint=f"{hint} with the token's account; some owners approve each request by hand"
            if self.has_token
            else f"{hint}, then set HF_TOKEN to a token of that account",
        )

    def _other(self, status: int, said: str) -> EdgeVLMError:
        what = f"HTTP {status}" + (f", {said}" if said else "")
        return HubError(
            f"{self.endpoint} refuses `{self.name.repo}`: {what}",
            hint="check that HF_TOKEN may read this repository" if status == 403 else "",
        )


def open_hub(name: HubName, *, note: Note) -> Hub:
    """Return how to ask the Hub that the environment names about `name`.

    Raises:
        HubError: HF_TOKEN holds what no token is made of.
    """
    from huggingface_hub import __version__ as hub_version
    from huggingface_hub import constants, get_token

    from edgevlm import __version__

    # Not `build_hf_headers`: it asks the Hub for a list of coding agents first, to tell it whether
    # one is at work.
    headers = {"user-agent": f"edgevlm/{__version__}; hf_hub/{hub_version}"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token is not None:
        if not re.fullmatch(r"[!-~]+", token):
            raise HubError(
                "the Hub's token holds characters that no token has",
                hint="check HF_TOKEN, or log in again: `hf auth login`",
            )
        headers["authorization"] = f"Bearer {token}"
    return Hub(name=name, endpoint=constants.ENDPOINT.rstrip("/"), headers=headers, note=note)


def patiently(hub: Hub, what: str, ask: Callable[[], _T]) -> _T:
    """Ask until there is an answer; a Hub to which there is no connection is asked once.

    Raises:
        HubUnreachableError: there is none.
    """
    patience = Patience(hub, what)
    while True:
        try:
            return ask()
        except Again as again:
            if again.is_unreachable:
                raise patience.end(again) from again
            patience.wait(again)


class Patience:
    """How often and how long to wait for an answer.

    Args:
        hub: to be named in the error at the end, and told about each wait.
        what: what is asked for.
    """

    def __init__(self, hub: Hub, what: str) -> None:
        self._hub = hub
        self._what = what
        self._tries = 0

    def renew(self) -> None:
        """Begin to count again: there was an answer."""
        self._tries = 0

    def wait(self, again: Again) -> None:
        """Wait as long as the server asks, else longer each time.

        Raises:
            HubUnreachableError: it was tried often enough, or the server asks for too much.
        """
        self._tries += 1
        own = min(_FIRST_WAIT_SECONDS * 2 ** (self._tries - 1), _LONGEST_OWN_WAIT_SECONDS)
        seconds = own if again.seconds is None else again.seconds
        if self._tries >= _TRIES or seconds > _LONGEST_ASKED_WAIT_SECONDS:
            raise self.end(again)
        self._hub.note(f"{self._hub.endpoint}: {again.why}; trying again in {seconds:.0f} s")
        sleep(seconds)

    def end(self, again: Again) -> HubUnreachableError:
        """Return the error of an answer that is not waited for."""
        hint = "check the network; what has come is kept, the same command goes on from there"
        if again.is_unreachable:
            hint = "check the network, and HF_ENDPOINT where it is set"
        if again.seconds is not None and again.seconds > _LONGEST_ASKED_WAIT_SECONDS:
            hint = f"it asks to wait {again.seconds:.0f} s: try again then"
            if not self._hub.has_token:
                hint += "; with HF_TOKEN set, more requests are allowed"
        return HubUnreachableError(
            f"cannot get {self._what} from {self._hub.endpoint}: {again.why}", hint=hint
        )


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait: RateLimit's or Retry-After's."""
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    asked = headers.get("retry-after", "").strip()
    return float(asked) if asked.isdecimal() and len(asked) < 10 else None


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:_SHOWN_CHARACTERS]


def quoted(part: str) -> str:
    """Return `part` as one segment of an address."""
    return quote(part, safe="")
