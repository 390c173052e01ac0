"""What a user types for a repository: `org/name`, `org/name@revision` or its page's address."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgevlm.errors import SourceNotFoundError

DEFAULT_REVISION = "main"
_HINT = "write ORG/NAME, ORG/NAME@REVISION or https://huggingface.co/ORG/NAME"
_PLAIN = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@\S+)?", re.ASCII)
_ADDRESS = re.compile(r"(https?://|hf://|hf\.co/|huggingface\.co/)", re.IGNORECASE)
# What git allows in a branch or tag, less what means another folder.
_REVISION = re.compile(r"[\w][\w./+=-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A model repository of the Hub, at a revision.

    Attributes:
        repo: "org/name".
        revision: branch, tag or commit.
    """

    repo: str
    revision: str = DEFAULT_REVISION

    @property
    def short(self) -> str:
        """The name without its owner, as a model is named after it."""
        return self.repo.rpartition("/")[2]

    def __str__(self) -> str:
        return self.repo if self.revision == DEFAULT_REVISION else f"{self.repo}@{self.revision}"


def parse_hub_name(text: str) -> HubName | None:
    """Return the repository that `text` names, None where it has not the form of a name.

    Raises:
        SourceNotFoundError: an address that leads elsewhere: another host, a data set, one file.
    """
    is_address = _ADDRESS.match(text) is not None
    # What ends so is a file that is not there; a repository of such a name has its address.
    if not is_address and (not _PLAIN.fullmatch(text) or text.endswith(".gguf")):
        return None
    from huggingface_hub import constants
    from huggingface_hub.errors import HfUriError
    from huggingface_hub.utils import parse_hf_uri

    # A branch may have a slash in its name; in an address it would begin a path.
    plain, _, typed_revision = ("", "", "") if is_address else text.partition("@")
    try:
        found = parse_hf_uri(text if is_address else f"hf://{plain}", endpoint=constants.ENDPOINT)
    except HfUriError as error:
        if not is_address:
            return None
        raise SourceNotFoundError(
            f"`{text}` names no repository: {error.msg}", hint=_HINT
        ) from None
    if found.type != "model":
        raise SourceNotFoundError(f"`{text}` is a {found.type}, not a model", hint=_HINT)
    if found.path_in_repo:
        raise SourceNotFoundError(
            f"`{text}` names `{found.path_in_repo}` inside a repository",
            hint=f"name the repository: `{found.id}`",
        )
    revision = typed_revision or found.revision or DEFAULT_REVISION
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise SourceNotFoundError(f"`{revision}` cannot be a revision of `{found.id}`", hint=_HINT)
    return HubName(repo=found.id, revision=revision)
