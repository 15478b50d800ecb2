"""Clips, items and a server for the judge's tests."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.metrics.base import Context
from eval.metrics.scoring import Item
from p2e.render.video import Clip, write_mp4

__all__ = ["GOOD", "completion", "make_items", "serving"]

GOOD = {"reason": "It is gradual.", "effect": 51, "context": 18, "temporal": 17, "hard_fail": False}
Reply = tuple[int, Any, dict[str, str]]


def make_items(folder: Path, count: int, frames: int = 17, side: int = 64) -> list[Item]:
    """Items whose clips and prompts differ."""
    found = []
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (frames, 4, 4, 3), dtype=np.uint8)
        clip = Clip(np.ascontiguousarray(pixels.repeat(side // 4, 1).repeat(side // 4, 2)))
        video, image = folder / f"secret-method-{index}.mp4", folder / f"secret-file-{index}.png"
        write_mp4(video, clip)
        Image.fromarray(clip.frames[0]).save(image)
        context = Context(f"wish {index}", str(image), f"effect_{index}")
        found.append(Item(f"clip{index}", str(video), context))
    return found


def completion(content: Any = None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    """A server's answer."""
    text = json.dumps(GOOD) if content is None else content
    return {
        "choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 123},
    }  # fmt: skip


@contextmanager
def serving(reply: Callable[[dict[str, Any], int], Reply]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server at its URL that answers what `reply` says to a body and the number of the request, from 0, and the
    bodies that came. A status of 0 hangs up without a word."""
    bodies: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(bodies)
                bodies.append({"body": body, "path": self.path, "headers": dict(self.headers)})
            status, value, headers = reply(body, number)
            if status == 0:
                self.close_connection = True
                self.connection.close()
                return
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, content in headers.items():
                self.send_header(name, content)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
