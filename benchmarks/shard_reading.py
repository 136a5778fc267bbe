"""Images per second of the training loader: loose files, shards on this disk, and shards behind HTTP with a latency.

    python benchmarks/shard_reading.py MANIFEST WORK_FOLDER [--latency-ms 20] [--images 1024] [--rounds 3]

Writes the manifest's images as shards into the folder, serves it on the loopback address (each request waits for the
latency first), and reads the same number of images by each way in turn, one worker process of the loader, 224 px crops.
Needs aiohttp for HTTP. Rates are of wall-clock; the CPU seconds are of all processes of the loader.
"""

from __future__ import annotations

import argparse
import http.server
import multiprocessing
import os
import shutil
import statistics
import time
from functools import partial
from pathlib import Path

import torch

from terrasieve import manifest
from terrasieve.curate.engine import Local
from terrasieve.curate.shards import ShardSettings, export_shards, read_index
from terrasieve.curate.step import Work
from terrasieve.data import images
from terrasieve.data.augment import ImageSettings
from terrasieve.data.loader import LoaderSettings, train_batches

BATCH = 32


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, whole or by range."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement
    latency_s = 0.0

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        time.sleep(self.latency_s)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        size, wanted = path.stat().st_size, self.headers.get("Range")
        start, stop = 0, size
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else size, size)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if body:
            with path.open("rb") as file:
                file.seek(start)
                self.wfile.write(file.read(stop - start))


def serve(folder: str, latency_s: float, port: object) -> None:
    Handler.latency_s = latency_s
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    port.send(server.server_address[1])  # type: ignore[attr-defined]
    server.serve_forever()


def rate(what: images.Images, loader: LoaderSettings, count: int) -> tuple[float, float]:
    """Return images per second of wall-clock, and CPU milliseconds per image."""
    steps = range(count // BATCH)
    began, cpu = time.perf_counter(), sum(os.times()[:4])
    for _ in train_batches(what, ImageSettings(size_px=224), loader, seed=0, steps=steps, batch_size=BATCH):
        pass
    seconds = time.perf_counter() - began
    return len(steps) * BATCH / seconds, (sum(os.times()[:4]) - cpu) * 1e3 / (len(steps) * BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    shards, cache = given.folder / "shards", given.folder / "cache"
    began = time.process_time()
    export_shards(given.manifest, shards, ShardSettings(shard_mb=2), Work(given.folder, Local(1)))
    index = read_index(shards)
    megabytes = sum(index["bytes"].to_pylist()) / 1e6
    print(f"{index.num_rows} shards, {megabytes:.1f} MB, written in {time.process_time() - began:.2f} CPU s")
    mine, other = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(str(given.folder), given.latency_ms / 1e3, other), daemon=True
    )
    server.start()
    url = f"http://127.0.0.1:{mine.recv()}/shards/manifest.parquet"
    local, far = ({"workers": 1, "order": order} for order in ("uniform", "shards"))
    kept = {"cache": str(cache)}
    ways = {
        "loose files": (given.manifest, local),
        "shards here, uniform order": (shards / "manifest.parquet", local),
        "shards here, order by shards": (shards / "manifest.parquet", far),
        "HTTP, by range alone": (url, local | kept | {"cache_gb": 1e-6}),
        "HTTP, cache empty at first": (url, far | kept | {"lanes": 8}),
        "HTTP, cache full": (url, far | kept | {"lanes": 8}),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        shutil.rmtree(cache, ignore_errors=True)
        for name, (path, loader) in ways.items():
            what = images.from_table(manifest.read(path))
            found[name].append(rate(what, LoaderSettings(**loader), given.images))  # type: ignore[arg-type]
    print(f"latency {given.latency_ms:g} ms, {given.images} images a round, medians of {given.rounds} rounds")
    print("| way | images/s | CPU ms an image |\n|---|---:|---:|")
    for name, rounds in found.items():
        rates, cpu = zip(*rounds, strict=True)
        print(f"| {name} | {statistics.median(rates):,.0f} | {statistics.median(cpu):.2f} |")
    server.terminate()


if __name__ == "__main__":
    main()
