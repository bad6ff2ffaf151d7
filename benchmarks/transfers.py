"""Measure how fast bytes go between a file, this machine's memory and a GPU, in the ways that merging could use.

    python benchmarks/transfers.py --folder FOLDER        # 10 GB of disk there; without a GPU only files are measured

The file is in the file cache; what is written is forced to the disk in a row of its own.

Writes  benchmarks/results/transfers_<device>.json
Exit    0 done
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from _random_mistral import environment, results_file

from tool_aware.console import EXIT_DONE, run, table
from tool_aware.files import write_json
from tool_aware.units import MIB

PIECES, PIECE_BYTES = 32, 128 * MIB  # of a file, each as large as a large matrix of a 7B
THREADS = (1, 2, 4, 8)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where files of 4 GB are written (default: a temporary folder)")
    arguments = parser.parse_args(argv)
    facts = environment()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rates = measure(Path(folder))
    file = results_file("transfers", facts["device"])
    write_json(file, {**facts, "bytes": PIECES * PIECE_BYTES, "gb_per_s": rates})
    print(table(("way", "GB/s"), [(way, f"{rate:.2f}") for way, rate in rates.items()], align="<>"))
    print(file)
    return EXIT_DONE


def measure(folder: Path) -> dict[str, float]:
    """Return GB/s by way."""
    source, target, has_gpu = folder / "source", folder / "target", torch.cuda.is_available()
    kept = [torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=has_gpu).random_() for _ in range(max(THREADS))]
    with source.open("wb") as file:
        for number in range(PIECES):
            file.write(kept[number % len(kept)].numpy().data)
    rates: dict[str, float] = {}

    def time_way(way: str, work: Callable[[], object]) -> None:
        begun_s = time.perf_counter()
        work()
        if has_gpu:
            torch.cuda.synchronize()
        rates[way] = round(PIECES * PIECE_BYTES / 1e9 / (time.perf_counter() - begun_s), 2)

    def write_piece(worker: int, at: int) -> None:
        write_from(kept[worker], handle, at)

    time_way("from the file into new memory", lambda: [read_into(source, new_piece(), at) for at in range(PIECES)])
    for threads in THREADS:
        read = partial(shared, threads, lambda worker, at: read_into(source, kept[worker], at))
        time_way(f"from the file into memory in use, {threads} threads", read)
    if has_gpu:
        mapped, on_gpu = torch.from_file(str(source), size=PIECES * PIECE_BYTES, dtype=torch.uint8), kept[0].to("cuda")
        time_way("from a mapping to the GPU", lambda: [part.to("cuda") for part in mapped.split(PIECE_BYTES)])
        for threads in THREADS:
            read = partial(shared, threads, lambda worker, at: read_into(source, kept[worker], at).to("cuda"))
            time_way(f"from the file to the GPU through page-locked memory, {threads} threads", read)
        time_way("from the GPU into new memory", lambda: [on_gpu.cpu() for _ in range(PIECES)])
        time_way("from the GPU into page-locked memory", lambda: [kept[0].copy_(on_gpu) for _ in range(PIECES)])
    for threads in THREADS:
        with opened(target) as handle:
            time_way(f"into the file's cache, {threads} threads", partial(shared, threads, write_piece))
            time_way(f"that to the disk, after {threads} threads", partial(os.fsync, handle))
    with opened(target) as handle:
        time_way("into a mapping and to the disk, 4 threads", partial(write_mapped, handle, kept))
    with opened(target) as handle:
        time_way("into the cache and to the disk meanwhile", partial(write_and_sync, handle, kept[0]))
    if has_gpu:  # whose page-locked memory begins at a page, as this takes
        with opened(target, os.O_DIRECT) as handle:
            time_way("past the cache to the disk, 4 threads", partial(shared, 4, write_piece))
    return rates


def new_piece() -> torch.Tensor:
    """Return memory that no page has been used of."""
    return torch.empty(PIECE_BYTES, dtype=torch.uint8)


def shared(threads: int, work: Callable[[int, int], object]) -> None:
    """Do `work(worker, piece)` for all pieces in so many threads."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda worker: [work(worker, at) for at in range(worker, PIECES, threads)], range(threads)))


@contextlib.contextmanager
def opened(path: Path, flags: int = 0) -> Iterator[int]:
    """Open a new file to write into, of its whole length."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | flags)
    try:
        yield handle
    finally:
        os.close(handle)


def read_into(path: Path, piece: torch.Tensor, at: int) -> torch.Tensor:
    """Read a piece of a file and return it."""
    with path.open("rb", buffering=0) as file:
        file.seek(at * PIECE_BYTES)
        space, done = piece.numpy().data, 0
        while done < PIECE_BYTES:
            done += file.readinto(space[done:]) or 0
    return piece


def write_from(piece: torch.Tensor, handle: int, at: int) -> None:
    """Write a piece to its place in a file."""
    content, done = piece.numpy().data, 0
    while done < PIECE_BYTES:
        done += os.pwrite(handle, content[done : done + 64 * MIB], at * PIECE_BYTES + done)


def write_mapped(handle: int, pieces: Sequence[torch.Tensor]) -> None:
    """Write all pieces into a mapping of a file, by four threads, and wait for the disk."""
    os.ftruncate(handle, PIECES * PIECE_BYTES)
    parts = torch.frombuffer(mmap.mmap(handle, PIECES * PIECE_BYTES), dtype=torch.uint8).split(PIECE_BYTES)
    shared(4, lambda worker, at: parts[at].copy_(pieces[worker]))
    os.fsync(handle)


def write_and_sync(handle: int, piece: torch.Tensor) -> None:
    """Write all pieces while another thread has the disk take them."""
    is_done = threading.Event()

    def sync() -> None:
        while not is_done.wait(0.05):
            os.fsync(handle)

    syncing = threading.Thread(target=sync)
    syncing.start()
    for at in range(PIECES):
        write_from(piece, handle, at)
    is_done.set()
    syncing.join()
    os.fsync(handle)


if __name__ == "__main__":
    run(main)
