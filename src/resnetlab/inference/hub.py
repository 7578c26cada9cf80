"""Upload a shared folder to the Hugging Face hub, or to what $HF_ENDPOINT names."""

from __future__ import annotations

from pathlib import Path

from resnetlab.errors import ResnetlabError, UsageError, first_informative_line
from resnetlab.inference.engines import EXPORT_FILE


def push(folder: Path, repository: str, *, private: bool, token: str | None) -> str:
    """Upload the folder; the repository is created where there is none. Returns its address.

    Raises:
        UsageError: no name of a repository.
        ResnetlabError: huggingface_hub is missing; no network, no token, no permission.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        raise ResnetlabError("huggingface_hub is missing. Install: pip install huggingface_hub.") from None
    api = HfApi(token=token)
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        message = "Weights and model card by resnetlab"
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, ignore_patterns=[EXPORT_FILE], commit_message=message
        )
    except HFValidationError as error:
        raise UsageError(f"Received repository {repository!r}, expected USER/NAME: {error}.") from None
    except Exception as error:  # offline, no access: it raises the errors of its HTTP library too
        raise ResnetlabError(
            f"{repository} cannot be uploaded ({first_informative_line(error)}). Log in with `hf auth login`, or "
            f"upload {folder} by hand."
        ) from None
    return str(url)
