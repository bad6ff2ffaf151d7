"""The rates that NVIDIA publishes for its cards: arithmetic and memory bandwidth, and their compute capability."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedCard:
    """One card. `tflops` are dense bf16 tensor operations with fp32 sums (fp16 where there is no bf16).

    `sizes_gib` are the memories that are sold under the name, as the driver shows them (with ECC some is missing).
    """

    name: str  # part of what NVML calls the card
    capability: tuple[int, int]
    tflops: float
    bandwidth_gbs: float  # GB a second, 10^9 bytes
    sizes_gib: tuple[float, ...]


# Written down without the papers at hand; compare a figure with its source before you rely on it.
# Sources: NVIDIA's architecture white papers, their tables of "peak FP16 tensor TFLOPS with FP32 accumulate", dense,
# and of memory bandwidth (Ampere GA102, Ada, RTX Blackwell), and the data sheets of the T4, V100, A10, A100, RTX A6000,
# L4, L40S, H100 SXM and H200 SXM, whose figures with sparsity are halved. A GeForce card since Ampere does 512 such
# operations a clock and multiprocessor: 48 x 512 x 2.512 GHz are the 61.7 of a 5070.
CARDS = (
    PublishedCard("RTX 3060", (8, 6), 25.6, 360, (8, 12)),
    PublishedCard("RTX 3060 Ti", (8, 6), 32.4, 448, (8,)),
    PublishedCard("RTX 3070", (8, 6), 40.6, 448, (8,)),
    PublishedCard("RTX 3080", (8, 6), 59.5, 760, (10,)),
    PublishedCard("RTX 3090", (8, 6), 71.0, 936, (24,)),
    PublishedCard("RTX 4060 Ti", (8, 9), 44.1, 288, (8, 16)),
    PublishedCard("RTX 4070", (8, 9), 58.3, 504, (12,)),
    PublishedCard("RTX 4070 Ti", (8, 9), 80.2, 504, (12,)),
    PublishedCard("RTX 4080", (8, 9), 97.5, 717, (16,)),
    PublishedCard("RTX 4090", (8, 9), 165.2, 1008, (24,)),
    PublishedCard("RTX 5070", (12, 0), 61.7, 672, (12,)),
    PublishedCard("RTX 5090", (12, 0), 209.5, 1792, (32,)),
    PublishedCard("T4", (7, 5), 65.0, 320, (15,)),
    PublishedCard("V100", (7, 0), 125.0, 900, (16, 32)),
    PublishedCard("A10", (8, 6), 125.0, 600, (22.5,)),
    PublishedCard("A6000", (8, 6), 154.8, 768, (48,)),
    PublishedCard("A100", (8, 0), 312.0, 1555, (40, 80)),
    PublishedCard("L4", (8, 9), 121.0, 300, (22.5,)),
    PublishedCard("L40S", (8, 9), 362.0, 864, (48,)),
    PublishedCard("H100", (9, 0), 989.0, 3350, (80,)),
    PublishedCard("H200", (9, 0), 989.0, 4800, (141,)),
)
# Others of the same series, which a part of their name must not be taken for.
_SUFFIXES = r"(?! ?(?:Ti|SUPER|Laptop|Max-Q|Mobile)\b)"


def published_card(name: str) -> PublishedCard | None:
    """Look a card up by the name NVML gives it, or a part of it such as "4070 ti"; None if the table lacks it."""
    for card in sorted(CARDS, key=lambda card: len(card.name), reverse=True):
        part = re.escape(card.name.removeprefix("RTX "))
        if re.search(rf"(?<!\w){part}(?!\w){_SUFFIXES}", name, re.IGNORECASE):
            return card
    return None
