"""The Hugging Face Hub: the commit that an hf:// path stands for."""

from pipeline import storage
from schemas.wording import one_line


def at_commit(url: str) -> str:
    """`url` in the commit that its repository is at now, where it is on the hub and has commits; any other as it is.

    Raises OSError: FileNotFoundError where there is no such repository or revision.
    """
    if storage.scheme_of(url) != "hf":
        return url
    import httpx2  # here, as these take a second that other paths need not wait for
    from huggingface_hub import HfApi, HfFileSystem
    from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath

    try:
        place = HfFileSystem(skip_instance_cache=True).resolve_path(url)
        if not isinstance(place, HfFileSystemResolvedRepositoryPath):  # a bucket
            return url
        info = HfApi().repo_info(place.repo_id, revision=place.revision, repo_type=place.repo_type)
    except httpx2.HTTPError as error:
        raise error if isinstance(error, OSError) else OSError(f"{url}: {one_line(error)}") from error
    return storage.join(f"hf://{place.root.split('@')[0]}@{info.sha}", place.path)
