"""The tasks of a run: for each system, the rows, and free answers, constrained answers or only a choice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tool_aware.config.settings import Config
from tool_aware.evaluation.held_out import TestSet
from tool_aware.evaluation.scoring.robustness import Variant
from tool_aware.rows import Row
from tool_aware.tools import Toolbox

Kind = Literal["free", "constrained", "choice"]

VAL_CHOICE = "finetuned_choice_val"


@dataclass(frozen=True)
class Task:
    """One pass over some rows. `name` is also the name of its predictions file; `real_names` unmasks tool names."""

    name: str
    uses_adapter: bool
    kind: Kind
    rows: Mapping[int, Row]
    tools: Toolbox
    real_names: Mapping[str, str]
    variant: str = ""
    list_name: str = ""  # of a variant that does not ask for the same choices as the plain prompts

    @property
    def system(self) -> str:
        """Return the model that does it, `base` or `finetuned`."""
        return "finetuned" if self.uses_adapter else "base"


@dataclass(frozen=True)
class Plan:
    """The kinds of tasks to run for base and fine-tuned model."""

    answers: bool = True
    constrained: bool = True
    choices: bool = True


def plan_tasks(
    plan: Plan, test: Mapping[int, Row], val: Mapping[int, Row], tools: Toolbox, variants: list[Variant]
) -> list[Task]:
    """List the tasks, choices first: they are quick, and a wrong set-up shows in them."""
    same = {name: name for name in tools.names}
    tasks = []
    for system, tuned in (("base", False), ("finetuned", True)):
        if plan.choices:
            tasks.append(Task(f"{system}_choice", tuned, "choice", test, tools, same))
            tasks += [
                Task(
                    f"{system}_choice_{_slug(v.name)}",
                    *(tuned, "choice", v.rows, v.tools, v.real_names),
                    variant=v.name,
                    list_name=v.list_name,
                )
                for v in variants
            ]
            if tuned and val:
                tasks.append(Task(VAL_CHOICE, tuned, "choice", val, tools, same))
        if plan.answers:
            tasks.append(Task(system, tuned, "free", test, tools, same))
        if plan.constrained:
            tasks.append(Task(f"{system}_constrained", tuned, "constrained", test, tools, same))
    return tasks


def _slug(name: str) -> str:
    return name.replace(":", "").replace(" ", "_")


def origin_of(
    task: Task, test: TestSet, config: Config, *, model: str, adapter: str | None, **engine: Any
) -> dict[str, Any]:
    """Return everything that the answers to a task depend on; answers of another origin are not reused."""
    tools = json.dumps([[tool.name, tool.description, dict(tool.parameters)] for tool in task.tools])
    return {
        "dataset": test.val_sha256 if task.name == VAL_CHOICE else test.sha256,
        "kind": task.kind,
        "variant": task.variant,
        "tools": hashlib.sha256(tools.encode()).hexdigest(),
        "max_new_tokens": None if task.kind == "choice" else config.evaluation.max_new_tokens,
        "model": model,
        "weights": _weights_of(model),
        "revision": config.model.revision,
        "quantization": config.quantization.model_dump(mode="json"),
        "adapter": adapter,
        **({"rows": test.rendered} if test.rendered else {}),
        **engine,
    }


def _weights_of(model: str) -> str | None:
    """Identify the weights in a local model folder by names, sizes and times; None for a model id."""
    if not Path(model).is_dir():
        return None
    files = sorted(path for path in Path(model).iterdir() if path.suffix in (".safetensors", ".bin"))
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
