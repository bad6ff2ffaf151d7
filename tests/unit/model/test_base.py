"""Loading: what is refused and how it is said; and that evaluating does not spoil training."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.model.adapter import new_adapter, prepare_for_training
from tool_aware.model.base import adapter_base, load_base_model, locate_model, same_model


@pytest.fixture
def tiny_config(config: Config, tiny_model_dir: Path) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"name": str(tiny_model_dir)})})


def test_linear_layers_are_nf4_and_nothing_is_trained_or_upcast(tiny_config):
    base = load_base_model(tiny_config.model, tiny_config.quantization)
    layer = base.model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == "Linear4bit"
    assert (layer.weight.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_gradients_after_an_evaluation_equal_those_before_it(tiny_config):
    """With AVX512-BF16, bitsandbytes repacks weights in the first eval forward unless it is told not to."""
    base = load_base_model(tiny_config.model, tiny_config.quantization)
    model = new_adapter(base, tiny_config)
    prepare_for_training(model, tiny_config)
    ids = torch.arange(5, 25)[None]

    def gradients() -> torch.Tensor:
        model.train()
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    before = gradients()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    torch.testing.assert_close(gradients(), before)


def test_the_adapter_covers_all_linear_layers_and_starts_as_a_zero_update(tiny_config):
    base = load_base_model(tiny_config.model, tiny_config.quantization)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        model = new_adapter(base, tiny_config)
        after = model(input_ids=ids).logits
    torch.testing.assert_close(after, before)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2 * 7


def test_unknown_target_modules_are_named(tiny_config):
    lora = tiny_config.lora.model_copy(update={"target_modules": ["q_projj"]})
    base = load_base_model(tiny_config.model, tiny_config.quantization)
    with pytest.raises(UserError, match="no such layers") as caught:
        new_adapter(base, tiny_config.model_copy(update={"lora": lora}))
    assert "q_projj" in str(caught.value)


def test_an_update_of_the_output_head_is_refused(tiny_config):
    lora = tiny_config.lora.model_copy(update={"target_modules": ["q_proj", "lm_head"]})
    base = load_base_model(tiny_config.model, tiny_config.quantization)
    with pytest.raises(UserError, match="cannot be adapted: lm_head"):
        new_adapter(base, tiny_config.model_copy(update={"lora": lora}))


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        locate_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no weights"):
        locate_model(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(name):
    with pytest.raises(UserError, match="no such folder"):
        locate_model(name)


def test_a_folder_without_an_adapter_says_which_stage_makes_one(tmp_path):
    with pytest.raises(UserError) as caught:
        adapter_base(tmp_path)
    assert "python train_tool_aware.py" in str(caught.value)


def test_two_names_of_one_folder_are_the_same_model(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    assert same_model("m", str(tmp_path / "m"))
    assert not same_model("m", "mistralai/Mistral-7B-Instruct-v0.2")


class HubAnswer(http.server.BaseHTTPRequestHandler):
    """A Hugging Face that answers every question with one status."""

    status, error_code = 401, ""

    def do_GET(self) -> None:
        self.send_response(self.status)
        if self.error_code:
            self.send_header("X-Error-Code", self.error_code)
        body = json.dumps({"error": "no"}).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "error_code", "token", "expected"),
    [
        (401, "GatedRepo", None, "gated and HF_TOKEN is not set (401)"),
        (401, "GatedRepo", "hf_wrong", "your HF_TOKEN is not valid (401)"),
        (403, "GatedRepo", "hf_right", "accept its terms at https://huggingface.co/mistralai/Gated-Model"),
        (401, "RepoNotFound", None, "no such folder here and no such model on Hugging Face"),
        (404, "RepoNotFound", "hf_right", "no such folder here and no such model on Hugging Face"),
        (500, "", None, "Hugging Face answered 500"),
    ],
)
def test_what_the_hub_answers_becomes_advice(status, error_code, token, expected, tmp_path):
    """In a process of its own, as the hub's address is read at import."""
    handler = type("Answer", (HubAnswer,), {"status": status, "error_code": error_code})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "from tool_aware.model.base import locate_model\n"
        "from tool_aware.console import UserError\n"
        f"try: locate_model('mistralai/Gated-Model', hf_token={token!r})\n"
        "except UserError as error: print(error)"
    )
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "PATH": "/usr/bin",
    }
    try:
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
    finally:
        server.shutdown()
    assert expected in result.stdout, result.stderr
    assert token is None or token not in result.stdout + result.stderr
