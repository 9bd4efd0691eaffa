"""Send a folder to the Hugging Face Hub: everything or nothing, private by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretune.errors import HubError, PretuneError
from pretune.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

#: Files that a repository may hold without holding a model.
_HARMLESS = {".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"}
#: The file that marks a model saved by pretune, which a newer one may replace.
_OURS = "pretune.json"

_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN (https://huggingface.co/settings/tokens)."
_HINTS = {
    401: f"The token was refused. {_LOG_IN}",
    403: "The token may not write there: take one with write access "
    "(https://huggingface.co/settings/tokens), and check the owner's name.",
    404: "Check the owner's name; if HF_ENDPOINT is set, it must name a Hub.",
    409: "It exists already, but this token cannot see it: choose another name or another token.",
    429: "Too many requests: try again in a while.",
}


@dataclass(frozen=True)
class StagedFile:
    """A file to be sent: its name in the repository, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        url: address of the repository.
        commit: hash of the commit with the files.
        private: whether only people with access can see it.
        files: the files that were sent.
    """

    url: str
    commit: str
    private: bool
    files: tuple[StagedFile, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self)


def check_name(repo: str) -> None:
    """Check that the Hub accepts a name; a HubError says why not."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    hint = "Write owner/name: your user name or organization, then the model's name."
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise HubError(f"'{repo}': not a name on the Hugging Face Hub", hint)
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HubError(f"'{repo}': not a name on the Hugging Face Hub ({error})", hint) from None


def hub_token() -> str:
    """Return the token to write with; if nobody is logged in, a HubError says how to."""
    from huggingface_hub import get_token

    try:
        token = get_token()
    except Exception as error:  # in CI, exchanging an identity for a token may fail in many ways
        raise HubError(f"no token for the Hugging Face Hub ({_reason(error)})", _LOG_IN) from error
    if not token:
        raise HubError("no token for the Hugging Face Hub", _LOG_IN)
    return token


def staged_files(folder: Path) -> tuple[StagedFile, ...]:
    """List the files in a folder and its subfolders, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(StagedFile(p.relative_to(folder).as_posix(), p.stat().st_size) for p in files)


def upload(folder: Path, repo: str, *, token: str, public: bool, message: str) -> Published:
    """Put the files of a folder into a model repository, in one commit.

    The repository is created if it does not exist; an existing one keeps its visibility and its
    other files.

    Raises:
        HubError: the Hub refused or cannot be reached, or the repository holds something else, or
            everybody can see it already and `public` is not given.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    api = HfApi(token=token, library_name="pretune", library_version=__version__)
    files = staged_files(folder)
    # Everything that may be refused is checked before anything is created or sent.
    with _explained(repo):
        _check_card(folder, repo)
        existing = _existing(api, repo)
        if existing is not None:
            _check_existing(existing, repo, public=public)
            private = bool(existing.private)
        else:
            api.create_repo(repo, private=not public, repo_type="model")
            private = not public
    # With hf_xet installed, `upload_folder` would send a folder in several commits.
    additions = [CommitOperationAdd(file.name, folder / file.name) for file in files]
    created = "; the repository was created and is still empty" if existing is None else ""
    with _explained(repo, created):
        commit = api.create_commit(repo, additions, commit_message=message, repo_type="model")
    return Published(f"{constants.ENDPOINT}/{repo}", str(commit.oid), private, files)


def _check_card(folder: Path, repo: str) -> None:
    """Check that the Hub accepts the metadata of the card."""
    from huggingface_hub import ModelCard

    try:
        ModelCard.load(folder / "README.md").validate()
    except ValueError as error:
        raise HubError(
            f"{repo}: the Hub does not accept the model card ({_reason(error)})",
            "Give --license and --language as the Hub knows them, e.g. apache-2.0 and en.",
        ) from None


def _existing(api: HfApi, repo: str) -> ModelInfo | None:
    """Look a repository up; None if it does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repo)
    except RepositoryNotFoundError:  # a refused token is another error
        return None


def _check_existing(existing: ModelInfo, repo: str, *, public: bool) -> None:
    """Refuse a repository with somebody else's files, or one that is unexpectedly public."""
    names = {file.rfilename for file in existing.siblings or ()}
    others = sorted(names - _HARMLESS)
    # An earlier model of pretune may be replaced; anything else is somebody's work.
    if others and _OURS not in names:
        raise HubError(
            f"{repo}: holds files that are not a model of pretune ({', '.join(others[:4])}"
            f"{', ...' if len(others) > 4 else ''}); nothing is written there",
            "Choose another name, or remove those files on the Hub first.",
        )
    # Nothing becomes public by accident.
    if not existing.private and not public:
        raise HubError(
            f"{repo}: exists already, and everybody can see it",
            "Add --public if everybody may have this model, or choose another name.",
        )


@contextmanager
def _explained(repo: str, state: str = "") -> Iterator[None]:
    """Turn whatever the Hub's library raises into a `HubError`."""
    try:
        yield
    except PretuneError:
        raise
    except Exception as error:  # errors of the library, its HTTP client (by version) and hf_xet
        raise _explain(error, repo, state) from error


def _explain(error: Exception, repo: str, state: str) -> HubError:
    """Make the error for a failed request, which ends with what is already done (`state`)."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    what = f"{repo}: could not be sent to the Hugging Face Hub"
    status = _status(error)
    # The Hub answered: its status tells what to do. Otherwise nothing was reached.
    if status is not None:
        hint = _HINTS.get(status)
        if hint is None:
            hint = "The Hub is having trouble: try again later." if status >= 500 else None
        return HubError(f"{what} (HTTP {status}: {_reason(error)}){state}", hint)
    if isinstance(error, OfflineModeIsEnabled):
        hint = "HF_HUB_OFFLINE is set: unset it; or see what would be sent with --dry-run FOLDER."
    else:
        hint = (
            "Check the connection (HF_ENDPOINT names a mirror); --dry-run FOLDER writes what would "
            "be sent."
        )
    return HubError(f"{what} ({type(error).__name__}: {_reason(error)}){state}", hint)


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status behind an error, which uploads wrap in another error."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def _reason(error: BaseException) -> str:
    """Return the message of an error on one line."""
    message = getattr(error, "server_message", None) or str(error)
    return " ".join(str(message).split())[:300] or type(error).__name__
