"""Evaluation data: downloaded from a server on localhost, or read from a local folder."""

import gzip
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flexqwen.cli import InputError
from flexqwen.evaluation import sources
from flexqwen.evaluation.sources import Source

CONTENT = bytes(range(256)) * 400


class Server(ThreadingHTTPServer):
    """Serves `files`; what it does wrong is chosen by its attributes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.status, self.drops = {}, [], 200, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, content = self.server, self.server.files[self.path[1:]]
        server.asked.append(self.path[1:])
        if server.status != 200:
            self.send_error(server.status)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if server.drops:
            server.drops -= 1
            content = content[:1000]
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.delenv("FLEXQWEN_EVAL_DATA", raising=False)
    monkeypatch.setenv("FLEXQWEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server = Server()
    server.files = {"a": CONTENT, "b": CONTENT[::-1]}
    urls = tuple(server.url(name) for name in "ab")
    joined = CONTENT + CONTENT[::-1]
    monkeypatch.setitem(sources.SOURCES, "t/x.gz", Source(urls, hashlib.sha256(joined).hexdigest()))
    monkeypatch.setitem(sources.SOURCES, "t/y", Source(urls[:1], hashlib.sha256(CONTENT).hexdigest()))
    yield server
    server.shutdown()


def fails(name, *words):
    with pytest.raises(InputError) as stopped:
        sources.read(name)
    message = str(stopped.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_downloads_once_and_reads_from_the_cache_afterwards(server, tmp_path):
    assert sources.read("t/x.gz") == CONTENT + CONTENT[::-1]
    assert sources.read("t/x.gz") == CONTENT + CONTENT[::-1]
    assert server.asked == ["a", "b"]
    cached = tmp_path / "cache" / "data" / "t" / "x.gz"
    assert gzip.decompress(cached.read_bytes()) == CONTENT + CONTENT[::-1]
    assert [path.name for path in cached.parent.rglob("*") if path.is_file()] == ["x.gz"]


def test_an_interrupted_download_is_tried_again(server, tmp_path):
    server.drops = sources.RETRIES
    assert sources.read("t/y") == CONTENT and len(server.asked) == 1 + sources.RETRIES
    (tmp_path / "cache" / "data" / "t" / "y").unlink()
    server.drops, server.asked = 1 + sources.RETRIES, []
    fails("t/y", server.url("a"), "cannot download", "FLEXQWEN_EVAL_DATA")
    assert len(server.asked) == 1 + sources.RETRIES
    assert not list((tmp_path / "cache").rglob("y*"))  # files appear whole


@pytest.mark.parametrize(("status", "times"), [(404, 1), (403, 1), (503, 1 + sources.RETRIES)])
def test_what_is_not_there_is_one_line_and_a_refusal_is_final(server, status, times):
    server.status = status
    fails("t/y", server.url("a"), str(status), "FLEXQWEN_EVAL_DATA")
    assert len(server.asked) == times


def test_a_broken_archive_is_one_line(server, monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "t/z", Source((server.url("a"),), "0" * 64, sources.unzip))
    fails("t/z", server.url("a"), "SHA-256")


def test_wrong_content_is_refused_and_not_kept(server, tmp_path):
    server.files["a"] = CONTENT[:-1] + b"?"
    fails("t/y", "SHA-256", server.url("a"), "FLEXQWEN_EVAL_DATA")
    assert not (tmp_path / "cache" / "data" / "t" / "y").exists()
    server.files["a"] = CONTENT
    assert sources.read("t/y") == CONTENT
    (tmp_path / "cache" / "data" / "t" / "y").write_bytes(b"?")  # the cache is verified too
    assert sources.read("t/y") == CONTENT


def test_no_network_is_one_line(server):
    server.shutdown()
    server.server_close()
    fails("t/y", "cannot download", server.url("a"), "FLEXQWEN_EVAL_DATA")


def test_a_local_folder_is_verified_and_never_downloaded_to(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXQWEN_EVAL_DATA", str(tmp_path))
    fails("t/y", str(tmp_path / "t" / "y"), "missing", "unset")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "y").write_bytes(b"?")
    fails("t/y", str(tmp_path / "t" / "y"), "SHA-256", server.url("a"))
    (tmp_path / "t" / "x.gz").write_bytes(b"not gzip")
    fails("t/x.gz", "SHA-256")
    (tmp_path / "t" / "y").write_bytes(CONTENT)
    assert sources.read("t/y") == CONTENT and server.asked == []


@pytest.mark.real_data
def test_the_real_files_have_the_digests_that_the_code_names(eval_data):
    from flexqwen.evaluation.sources import SOURCES, read

    for name in SOURCES:
        if (eval_data / name).is_file():
            assert read(name)
    assert sum((eval_data / name).is_file() for name in SOURCES) >= 30


def test_every_address_is_pinned_to_a_commit():
    for name, source in sources.SOURCES.items():
        assert len(source.sha256) == 64, name
        for url in source.urls:
            assert any(len(part) == 40 for part in url.split("/")), url
