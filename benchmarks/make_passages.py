"""Make the passages that search texts are judged by: tool_aware/evaluation/scoring/passages.txt.gz.

    python benchmarks/make_passages.py

The file is fixed: figures of different versions are comparable only over the same passages. Made anew from other
content it would differ, and a test holds its sha256. From the content generator come, for every frame that asks for a
search, in all its languages, filled variants (what is searched for, and the sentence), which differ by names, numbers
and things; and for every domain short notes about its documents and matters.
"""

from __future__ import annotations

import gzip
import random
from pathlib import Path

from tool_aware.config.settings import load_config
from tool_aware.dataset.synthesis.content import load_content
from tool_aware.dataset.synthesis.fillers import draw
from tool_aware.dataset.synthesis.generator import Generator

VARIANTS = 4  # of a frame
NOTES = 40  # of a domain
SEED = 20_26
OUTPUT = Path(__file__).parents[1] / "tool_aware" / "evaluation" / "scoring" / "passages.txt.gz"


def main() -> None:
    """Write the passages, a line each, sorted."""
    content = load_content()
    generator = Generator(content, load_config(Path("config.yaml"), []).toolbox, seed=SEED)
    passages = set()
    for frame in content.frames:
        if frame.tool not in ("rag_retrieval", "web_search") or "{example}" in frame.pattern:
            continue
        for variant in range(VARIANTS if "{" in frame.pattern else 1):
            request = generator.request(frame, f"passage {variant}")
            query = " ".join(map(str, request.call.parameters.values()))
            passages.add(" ".join(f"{query}: {request.query}".split()))
    for name, domain in content.domains.items():
        passages |= set(notes(name, domain))
    text = "\n".join(sorted(passages)) + "\n"
    with OUTPUT.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as file:
        file.write(text.encode())
    print(f"{len(passages):,} passages, {len(text):,} characters, {OUTPUT.stat().st_size:,} bytes")


def notes(name: str, domain: dict[str, list[str]]) -> list[str]:
    """Return short notes about the things of one domain, two of them a note."""
    random_ = random.Random(f"{SEED}/{name}")
    lists = [items for items in domain.values() if isinstance(items, list)]
    if len(lists) < 2:
        return []
    found = []
    for _ in range(NOTES):
        first, second = random_.sample(lists, 2)
        found.append(f"{draw(first, random_).text}, {draw(second, random_).text}")
    return found


if __name__ == "__main__":
    main()
