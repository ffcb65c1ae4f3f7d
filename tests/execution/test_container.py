"""The image of the Containerfile is built twice, and does what it is for as its own user. It asks for buildah and root.

LLAVA_BATCH_BASE          another base than the Containerfile's, as a name that buildah knows
LLAVA_BATCH_BUILD_FLAGS   flags of `buildah bud`, as volumes with a configuration of pip
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What differs between two builds of the same: nothing that a job reads.
_OF_THE_BUILD = ("./proc/", "./sys/", "./dev/", "./run/", "./tmp/", "./etc/hosts", "./etc/resolv.conf")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("buildah") is None, reason="needs buildah and root"),
]


def buildah(*words: str) -> str:
    """What a command of buildah's says."""
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    done = subprocess.run(["buildah", *words], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@contextmanager
def built(name: str) -> Iterator[str]:
    """A container of the image, which is built from the beginning and gone at the end."""
    flags = shlex.split(os.environ.get("LLAVA_BATCH_BUILD_FLAGS", ""))
    flags += [f"--build-arg=BASE={base}"] if (base := os.environ.get("LLAVA_BATCH_BASE")) else []
    buildah("bud", "--no-cache", "--timestamp=0", *flags, "--file=Containerfile", f"--tag=localhost/{name}", ".")
    container = buildah("from", f"localhost/{name}").strip()
    try:
        yield container
    finally:
        buildah("rm", container)
        buildah("rmi", f"localhost/{name}")


def inside(container: str, *words: str) -> str:
    """What a command in a container says, as its user."""
    return buildah("run", container, "--", *words)


def files_of(container: str) -> set[str]:
    """The names of all files of a container, each with what is in it."""
    list_all = "find . -xdev -type f -print0 | xargs -0 sha256sum"
    folder = buildah("mount", container).strip()
    lines = subprocess.run(["bash", "-c", list_all], cwd=folder, capture_output=True, text=True, check=True).stdout
    return {line for line in lines.splitlines() if not line.split("  ", 1)[1].startswith(_OF_THE_BUILD)}


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    """A container of the image."""
    with built("llava-batch-1") as container:
        yield container


def test_a_second_build_is_the_same(container: str) -> None:
    first = files_of(container)
    with built("llava-batch-2") as again:
        assert files_of(again) == first


def test_the_image_answers_as_a_user_without_rights(container: str) -> None:
    assert inside(container, "id", "--user", "--name") == "ray\n"
    assert inside(container, "id", "--user") == "1000\n"
    assert inside(container, "llava-batch", "--version") == "0.1.0\n"
    assert inside(container, "bash", "-lc", "llava-batch --version") == "0.1.0\n"
    assert inside(container, "find", "/opt", "!", "-readable") == ""
    assert "nothing stands in the way of a job" in inside(container, "llava-batch", "doctor")
    picture = "from PIL import Image; Image.new('RGB', (40, 30)).save('/tmp/a.png')"
    inside(container, "python", "-c", picture)
    job = ("llava-batch", "caption", "--input", "/tmp/a.png", "--output", "/tmp/out")
    inside(container, *job, "--dry-run")
    assert '"ok": 1' in inside(container, *job, "--max-new-tokens", "3")
    assert "every answer is there, once" in inside(container, "llava-batch", "verify", "/tmp/out")


def test_the_image_has_what_runs_and_no_more(container: str) -> None:
    ours = inside(container, "ls", "/opt/llava-batch").split()
    assert set(ours) == {
        *("Containerfile", "constraints.txt", "demo", "jobs", "llava_batch", "llava_batch.egg-info"),
        *("pipeline", "pyproject.toml", "schemas"),
    }
    pinned = set((ROOT / "constraints.txt").read_text().split())
    there = inside(container, "pip", "list", "--format=freeze", "--exclude-editable").split()
    assert [one for one in there if one.partition("+")[0] not in pinned and not one.startswith(("pip==", "-e"))] == []
