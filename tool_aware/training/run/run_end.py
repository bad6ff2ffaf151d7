"""The end of a run: its card, and last the manifest, which marks the run as finished.

Nothing that is needed here can be missing: curves and card are fallbacks if they cannot be written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tool_aware.manifest import write_manifest
from tool_aware.paths import ADAPTER_FOLDER, MANIFEST_NAME, split_file
from tool_aware.stage_times import stage
from tool_aware.training.run.run_card import RunFacts, device_name, license_of, write_run_card
from tool_aware.training.run.run_record import claimed

if TYPE_CHECKING:
    from tool_aware.training.export.agreement import References
    from tool_aware.training.export.export import Merged
    from tool_aware.training.training_job import Job
    from tool_aware.training.validation import Exported


@dataclass(frozen=True)
class Trained:
    """A finished training; the adapter to export is in the model."""

    steps: int
    seconds: float
    peak_gib: float | None  # allocated by torch; None without a GPU
    exported: Exported
    written: dict[str, str]  # files of the saved adapter, with their sha256; empty but in the first process
    references: References | None  # what a merged model is compared with; None if none is wanted


def finish(job: Job, trained: Trained, merged: Merged | None, started_s: float) -> None:
    """Write the run card and last the manifest."""
    exported, adapters = trained.exported, job.output_dir / ADAPTER_FOLDER
    facts = RunFacts(
        job.config,
        adapters,
        data={split: (len(job.examples[split]), loaded.sha256) for split, loaded in job.data.items()},
        steps=trained.steps,
        exported_step=exported.step,
        why_exported=exported.why,
        validation=exported.validation.as_dict() if exported.validation else None,
        precision=job.precision,
        device=device_name(),
        license=license_of(job.config.model),
        fallbacks=tuple(job.fallbacks),
        merged=merged.as_dict() if merged else None,
    )
    with stage("run card"):
        write_run_card(job.output_dir, facts, job.fallbacks)
    details: dict[str, Any] = {
        "steps": trained.steps,
        "training_seconds": round(trained.seconds, 1),
        "peak_gib": trained.peak_gib,
        "compute_dtype": job.precision,
        "memory_plan": job.memory.as_dict(),
        "lineage": job.lineage,
        "exported": {"step": exported.step, "why": exported.why},
        "merged": facts.merged,
        "validation": facts.validation,
    }
    claimed(job.output_dir, MANIFEST_NAME, job.fallbacks)
    write_manifest(
        job.output_dir,
        stage="train",
        config=job.config.as_dict(),
        seed=job.config.training.seed,
        started_s=started_s,
        inputs={str(split_file(job.config.dataset.dir, split)): loaded.sha256 for split, loaded in job.data.items()},
        outputs={f"{ADAPTER_FOLDER}/{name}": sha256 for name, sha256 in trained.written.items()},
        counts={split: len(examples) for split, examples in job.examples.items()},
        fallbacks=job.fallbacks,
        **details,
    )
