"""Downloads from a server in this process: whole, resumed, cut, changed, wrong, missing, and wanted twice."""

import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from fastrcnn import download as module
from fastrcnn.download import cached_path, download

CONTENT = os.urandom(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()[:8]


class Server:
    """What it serves, how it misbehaves, and what it was asked for."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.ranges = True  # answers 206 to a Range
        self.cut = 0  # the connection ends after this many bytes of an answer; 0: at the end
        self.shift = 0  # answers a Range from this many bytes beyond its start
        self.status = 200
        self.asked: list[str | None] = []  # the Range of each request
        self.wait = threading.Event()  # an answer starts when this is set
        self.wait.set()

    def url(self, name: str = f"model-{DIGEST}.pth") -> str:
        return f"http://127.0.0.1:{self.port}/folder/{name}?version=1"

    port = 0


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and an empty cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            state.wait.wait(20)
            if state.status != 200:
                return self.send_error(state.status)
            body, start = state.content, 0
            if asked and state.ranges:
                start = int(asked.removeprefix("bytes=").removesuffix("-")) + state.shift
                if start >= len(body):
                    return self.send_error(416)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            body = body[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cut] if state.cut else body)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = http.server_port
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


def part_of(url: str) -> Path:
    return cached_path(url).with_name(f"{cached_path(url).name}.part")


def begin(url: str, content: bytes) -> None:
    """Leaves what an interrupted download leaves."""
    part_of(url).parent.mkdir(parents=True)
    part_of(url).write_bytes(content)


# --- what works -------------------------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    path = download(server.url())
    assert path == tmp_path / "hub" / "checkpoints" / f"model-{DIGEST}.pth"
    assert path.read_bytes() == CONTENT
    assert download(server.url()) == path
    assert server.asked == [None]
    assert list(path.parent.iterdir()) == [path]


def test_the_rest_of_an_interrupted_download_is_asked_for(server: Server) -> None:
    begin(server.url(), CONTENT[:1_000_000])
    assert download(server.url()).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000000-"]


def test_connections_that_are_cut_are_made_again(server: Server) -> None:
    server.cut = 800_000
    assert download(server.url()).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=800000-", "bytes=1600000-", "bytes=2400000-"]


def test_a_complete_part_needs_its_hash_only(server: Server) -> None:
    begin(server.url(), CONTENT)
    assert download(server.url()).read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["no ranges", "another range", "another version", "longer than the file"])
def test_a_part_that_cannot_be_continued_is_begun_again(fault: str, server: Server) -> None:
    begin(
        server.url(), {"another version": b"x" * 1000, "longer than the file": CONTENT + b"x"}.get(fault, CONTENT[:9])
    )
    server.ranges = fault != "no ranges"
    server.shift = 5 if fault == "another range" else 0
    assert download(server.url()).read_bytes() == CONTENT


def test_without_a_hash_nothing_is_resumed(server: Server) -> None:
    """Nothing would tell that the rest is of another version."""
    url = server.url("model.pth")
    begin(url, b"x" * 1000)
    assert download(url).read_bytes() == CONTENT
    assert server.asked == [None]


def test_two_processes_share_one_download(server: Server, tmp_path: Path) -> None:
    server.wait.clear()
    program = f"from fastrcnn.download import download; print(); print(download({server.url()!r}))"
    environment = {**os.environ, "TORCH_HOME": str(tmp_path)}
    command = [sys.executable, "-uc", program]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "\n"  # both are about to download
    server.wait.set()
    for process in processes:
        assert process.communicate(timeout=60)[0].strip() == str(cached_path(server.url()))
    assert server.asked == [None]
    assert cached_path(server.url()).read_bytes() == CONTENT
    assert list(cached_path(server.url()).parent.iterdir()) == [cached_path(server.url())]


def test_a_waiting_process_goes_on_where_another_gave_up(server: Server) -> None:
    """The part that it waited for is gone by then, deleted for its hash: it must not write to that file."""
    right, server.content = server.content, b"wrong"
    server.wait.clear()
    results: list[object] = []

    def work() -> None:
        try:
            results.append(download(server.url()))
        except ValueError as error:
            server.content = right
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    server.wait.set()
    for thread in threads:
        thread.join(30)
    assert sorted(type(result).__name__ for result in results) == ["PosixPath", "ValueError"]
    assert cached_path(server.url()).read_bytes() == CONTENT


# --- what does not ----------------------------------------------------------------------------------------------------


def test_a_wrong_hash_is_not_kept(server: Server) -> None:
    url = server.url("model-0123abcd.pth")
    with pytest.raises(ValueError, match=f"begins with 0123abcd, got {DIGEST}.* of 3000000 bytes"):
        download(url)
    assert list(cached_path(url).parent.iterdir()) == []
    with pytest.raises(ValueError, match="begins with 4567"):  # the caller's hash counts, not the name's
        download(server.url(), "4567")


def test_a_damaged_file_in_the_cache_is_found(server: Server) -> None:
    path = download(server.url())
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=re.escape(f"{path} is not the file of") + ".*Delete it"):
        download(server.url())


def test_no_such_file_on_the_server(server: Server) -> None:
    server.status = 404
    with pytest.raises(ConnectionError, match=rf"404.*put it at {re.escape(str(cached_path(server.url())))}, or give"):
        download(server.url())
    assert server.asked == [None]


def test_a_connection_that_always_breaks_keeps_what_came(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    server.cut = 1_000_000
    with pytest.raises(ConnectionError, match=r"after 2000000 of 3000000 bytes.*continues after the 2000000 bytes"):
        download(server.url())
    assert not cached_path(server.url()).exists()
    assert part_of(server.url()).read_bytes() == CONTENT[:2_000_000]
    assert download(server.url()).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=2000000-"


def test_a_connection_that_brings_nothing_is_not_repeated(server: Server) -> None:
    server.ranges, server.cut = False, 100
    with pytest.raises(ConnectionError, match="after 100 of 3000000 bytes"):
        download(server.url())
    assert len(server.asked) == 2


def test_a_full_disk_is_not_called_a_broken_connection(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(part: object, url: str) -> None:
        raise OSError(module.NO_SPACE[0], "No space left on device")

    monkeypatch.setattr(module, "_receive", full)
    with pytest.raises(OSError, match=r"No space left on device, downloading http.*model") as caught:
        download(server.url())
    assert not isinstance(caught.value, ConnectionError)


def test_a_digest_in_capitals(server, tmp_path: Path) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest().upper()
    assert download(server.url("capitals.pth"), digest).read_bytes() == CONTENT
    with pytest.raises(ValueError):
        download(server.url("other.pth"), digest[::-1])
