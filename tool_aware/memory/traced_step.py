"""The training step for a model without data, so that its memory can be traced before anything is downloaded.

It is the trainer's own micro-step; what GPU kernels do inside is replaced by the memory they take.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from tool_aware.config.settings import Config
from tool_aware.engine.sizes import FLASH_ROUNDING
from tool_aware.model.adapter import new_adapter, prepare_for_training
from tool_aware.prompt import EncodedExample

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

    from tool_aware.engine.decoder import PackedDecoder


class StepShape(Protocol):
    """What a step's memory depends on; lengths in tokens."""

    lora_r: int
    targets: str | tuple[str, ...]
    batch_size: int
    seq_length: int
    packing: str
    prefix_tokens: int
    answer_tokens: int
    label_tokens: int
    checkpointing: bool
    kept_layers: int
    cached_layers: int
    accumulation: int
    optimizer: str
    decoder: str


class DryStep:
    """Prepares a model without data and runs optimizer steps on it, as `tool_aware.memory.trace` wants it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._decoder: PackedDecoder | None = None

    def prepare(self, base: PreTrainedModel, shape: StepShape) -> PeftModel:
        """Put the adapter on a base model without data."""
        self._config, self._decoder = config_of(shape, self._config), None
        model = new_adapter(base, self._config)
        prepare_for_training(model, self._config)
        return model.train()

    def optimizer(self, model: PeftModel, shape: StepShape) -> Optimizer:
        """Make the configured optimizer, and the decoder that goes with it."""
        from tool_aware.engine.decoder import Backend, PackedDecoder
        from tool_aware.engine.optimizer import build_optimizer

        attention = _AttentionBuffers(shape)
        self._decoder, _ = PackedDecoder.of(model, self._config, Backend(_IN_PLACE, lambda _: attention))
        self._optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], self._config)
        return self._optimizer

    def backward(self, model: PeftModel, shape: StepShape) -> None:
        """Run the micro-steps of one optimizer step over examples of the shape's lengths."""
        import torch

        from tool_aware.engine.micro_step import MicroStep

        step = MicroStep(
            model,
            examples_of(shape),
            packing=shape.packing,
            limit=shape.batch_size,
            device=torch.device("cpu"),
            decoder=self._decoder,
            flat_gradient=getattr(self._optimizer, "gradient", None),
        )
        labels = torch.tensor(shape.label_tokens * shape.accumulation)
        for _ in range(shape.accumulation):
            step.add_gradient(list(range(shape.batch_size)), labels)


def config_of(shape: StepShape, base: Config) -> Config:
    """The config whose training step has this shape; what the shape leaves open is taken from `base`."""
    targets = shape.targets if isinstance(shape.targets, str) else list(shape.targets)
    changes: dict[str, dict[str, Any]] = {
        "lora": {"r": shape.lora_r, "target_modules": targets},
        "training": {"packing": shape.packing},
        "optimization": {
            "gradient_checkpointing": shape.checkpointing,
            "kept_layers": shape.kept_layers,
            "cached_layers": shape.cached_layers,
            "offload": False,  # there is no host to move anything to
            "decoder": "transformers" if shape.decoder == "transformers" else "auto",
            "optim": shape.optimizer,
        },
    }
    return base.model_copy(update={name: getattr(base, name).model_copy(update=x) for name, x in changes.items()})


def _nothing(*_: Any, **__: Any) -> bool:
    return True


# The kernels of kernels.py write where they are told to and need no memory of their own.
_IN_PLACE = SimpleNamespace(
    rms_norm=_nothing, rms_norm_backward=_nothing, rotate=_nothing, swiglu=_nothing, swiglu_backward_=_nothing,
    fill_matrix=_nothing,
)  # fmt: skip


class _AttentionBuffers:
    """The memory that packed_attention.FlashAttention takes, without the attention."""

    def __init__(self, shape: StepShape) -> None:
        self._prefix_tokens = shape.prefix_tokens if shape.packing == "prefix" else 0
        self._segments = shape.batch_size + (self._prefix_tokens > 0)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """See PackedAttention.forward."""
        own, lse = self._forward(query)
        if self._prefix_tokens:
            shared = (key[: self._prefix_tokens].clone(), value[: self._prefix_tokens].clone(), *self._forward(query))
            del shared
        del own
        return lse

    def backward(  # noqa: PLR0917
        self,
        gradient: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """See PackedAttention.backward."""
        own = self._backward(query, key, self._segments)
        if not self._prefix_tokens:
            return own[0], None, own[1], own[2]
        shared = key[: self._prefix_tokens].clone(), value[: self._prefix_tokens].clone()
        through_prefix = self._backward(query, shared[0], segments=2)
        return own[0], through_prefix[0], own[1], own[2]

    @staticmethod
    def _forward(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return query.new_empty(query.shape), query.new_empty(query.shape[:2]).float()

    @staticmethod
    def _backward(
        query: torch.Tensor, key: torch.Tensor, segments: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch

        tokens, heads, size = query.shape
        rounded = tokens + FLASH_ROUNDING * segments
        in_fp32 = torch.empty(rounded, heads, size), torch.empty(heads, rounded)
        of_query = query.new_empty(query.shape)
        of_key, of_value = key.new_empty(key.shape), key.new_empty(key.shape)
        expanded = [key.new_empty(len(key), heads, size) for _ in range(2)] if key.shape[1] != heads else []
        del in_fp32, expanded
        return of_query, of_key, of_value


def examples_of(shape: StepShape) -> list[EncodedExample]:
    """Examples of the shape's lengths; ids do not matter but that the prefix is shared and what follows it is not."""
    answer = min(shape.answer_tokens, shape.seq_length - shape.prefix_tokens - 1)
    query = shape.seq_length - shape.prefix_tokens - answer
    return [
        EncodedExample([1] * shape.prefix_tokens + [2 + number] * query, [1] * answer)
        for number in range(shape.batch_size)
    ]
