"""Images per second that one preprocessing actor fetches over http from loopback: ours against bare aiohttp.

    python -m benchmarks.fetch [--images 5000] [--bytes 60000] [--hosts 1] [--rounds 3] [--img2dataset PYTHON]

The server is a process of its own that answers every request with the same JPEG-like bytes. Ours goes all the way that
a row's image goes: fetched ahead by threads within 256 MiB, addresses checked, bytes sniffed. Rounds alternate, so that
a busy machine slows both; the median counts. CPU is this process's own: what one core could do if it had nothing else
to do. `--img2dataset` is the Python of an environment that img2dataset is installed in (`pip install img2dataset`): it
fetches the same URLs from the same server with one process and as many threads as ours has connections, and writes and
decodes nothing; its pace is that of its own statistics, without its start. The last line of stdout is one JSON object.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp

from pipeline.preprocess.row_border import NOBODY, attempt
from pipeline.sources.fetch import ImageFetcher
from pipeline.sources.web.client import WebClient
from pipeline.sources.web.limits import WebLimits
from pipeline.stages.ahead import Ahead, Room
from schemas.errors import Failure
from schemas.request import ImageRef

_UNIT = 256  # images of one work unit
_MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The median of a contender's rounds."""

    name: str
    images_per_s: float
    images_per_cpu_s: float | None  # None for another process
    mb_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetched:
    """Says how many bytes a round fetched, and in how many seconds where it has measured them itself."""

    num_bytes: int
    seconds: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--bytes", type=int, default=60_000)
    parser.add_argument("--hosts", type=int, default=1, help="names that the images are spread over")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--img2dataset", metavar="PYTHON", help="of an environment that has it")
    arguments = parser.parse_args()
    with serving([b"\xff\xd8\xff\xe0" + bytes(arguments.bytes - 4)]) as port:
        urls = [f"http://host{i % arguments.hosts}.test:{port}/{i}.jpg" for i in range(arguments.images)]
        contenders: dict[str, Callable[[], _Fetched]] = {
            "ours": lambda: _Fetched(num_bytes=fetch_all(urls, arguments.connections)),
            "bare aiohttp": lambda: _Fetched(num_bytes=_bare(urls, port, arguments.connections)),
        }
        if arguments.img2dataset:
            there = partial(_img2dataset, arguments.img2dataset, urls, port, arguments.connections)
            contenders["img2dataset"] = lambda: there(arguments.bytes)
        results = list(_race(contenders, arguments.rounds, arguments.images, arguments.bytes))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for one in results:
        a_cpu = "" if one.images_per_cpu_s is None else f" {one.images_per_cpu_s:8,.0f} a CPU second"
        sys.stderr.write(f"{one.name:14}{one.images_per_s:8,.0f} images/s{a_cpu}\n")
    sys.stderr.write(f"{peak_mb:,.0f} MB at most\n")
    sys.stdout.write(json.dumps({"results": list(map(asdict, results)), "peak_mb": round(peak_mb)}) + "\n")


def _race(
    contenders: dict[str, Callable[[], _Fetched]], rounds: int, num_images: int, num_bytes: int
) -> Iterator[Result]:
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    elsewhere = set()
    for _ in range(rounds):
        for name, run in contenders.items():
            began, cpu = time.monotonic(), time.process_time()
            fetched = run()
            took[name].append((fetched.seconds or time.monotonic() - began, time.process_time() - cpu))
            elsewhere |= {name} if fetched.seconds else set()
            assert fetched.num_bytes == num_images * num_bytes, f"{name} fetched {fetched.num_bytes} bytes"
    for name, times in took.items():
        pace, a_cpu = (num_images / statistics.median(column) for column in zip(*times, strict=True))
        yield Result(
            name=name,
            images_per_s=round(pace, 1),
            images_per_cpu_s=None if name in elsewhere else round(a_cpu, 1),
            mb_per_s=round(pace * num_bytes / _MB, 1),
        )


def fetch_all(urls: Sequence[str], connections: int) -> int:
    """Return the number of bytes that a preprocessing actor's own way fetches, unit by unit."""
    limits = WebLimits(allow_private=True, connections=connections, per_host=connections, user_agent="benchmark")
    web = WebClient(limits, lambda _: ["127.0.0.1"])
    fetch_image = ImageFetcher(max_bytes=64 * 2**20, pdf_dpi=150, web=web)
    ahead = Ahead[bytes](len, num_threads=connections, seconds=60)

    def fetch(image: ImageRef, room: Room) -> bytes | Failure:
        data = attempt("fetch", lambda: fetch_image(image, room), NOBODY)
        assert isinstance(data, bytes), data
        return data

    size = 0
    for start in range(0, len(urls), _UNIT):
        rows = [[ImageRef(uri=url, table="/t.parquet")] for url in urls[start : start + _UNIT]]
        with ahead.unit(rows, fetch) as jobs:
            size += sum(len(data) for row in jobs for data in ahead.take(row))
    web.close()
    return size


def _bare(urls: Sequence[str], port: int, connections: int) -> int:
    """The bytes that as many tasks of aiohttp alone fetch."""

    async def run() -> int:
        todo, sizes = iter(range(len(urls))), list[int]()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:

            async def work() -> None:
                for number in todo:
                    async with session.get(f"http://127.0.0.1:{port}/{number}.jpg") as response:
                        sizes.append(len(await response.read()))

            await asyncio.gather(*(work() for _ in range(connections)))
        return sum(sizes)

    return asyncio.run(run())


_DOWNLOAD = """
import json, sys
from img2dataset import download
download(**json.loads(sys.argv[1]))
"""


def _img2dataset(python: str, urls: Sequence[str], port: int, connections: int, image_bytes: int) -> _Fetched:
    with tempfile.TemporaryDirectory() as folder:
        paths = [url.rsplit("/", 1)[1] for url in urls]
        list_of_urls = Path(folder, "urls.txt")
        list_of_urls.write_text("".join(f"http://127.0.0.1:{port}/{path}\n" for path in paths))
        settings = {
            "url_list": str(list_of_urls),
            "output_folder": f"{folder}/out",
            "output_format": "dummy",
            "processes_count": 1,
            "thread_count": connections,
            "number_sample_per_shard": len(urls),
            "disable_all_reencoding": True,
            "extract_exif": False,
            "compute_hash": None,
        }
        subprocess.run([python, "-c", _DOWNLOAD, json.dumps(settings)], check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(folder, "out").glob("*_stats.json")
        told = json.loads(path.read_text())
    return _Fetched(num_bytes=told["successes"] * image_bytes, seconds=told["duration"])


@contextmanager
def serving(bodies: Sequence[bytes]) -> Iterator[int]:
    """Serve these bodies in turn by the number in a path, as `/7.jpg`, from a process of its own; yield its port."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, bodies), daemon=True)
    server.start()
    try:
        yield int(ours.recv())
    finally:
        server.terminate()
        server.join()


def _serve(answer_to: Connection, bodies: Sequence[bytes]) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    responses = [head % len(body) + body for body in bodies]

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self._transport = transport

        def data_received(self, data: bytes) -> None:
            if data.endswith(b"\r\n\r\n"):
                number = int(data[data.index(b"/") + 1 : data.index(b".")])
                self._transport.write(responses[number % len(responses)])

    async def run() -> None:
        listening = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=1024)
        answer_to.send(listening.sockets[0].getsockname()[1])
        await listening.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
