"""Loading: what is refused and how it is said; and that evaluating does not spoil training."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import warnings

import pytest
import torch

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.sections import ModelSection, QuantizationSection
from tool_aware.console import UserError
from tool_aware.model.adapter import new_adapter, prepare_for_training
from tool_aware.model.base import cache_arguments, check_model_available, load_base_model, same_model


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


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        check_model_available(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no weights"):
        check_model_available(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(name):
    with pytest.raises(UserError, match="no such folder"):
        check_model_available(name)


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
        (403, "", "hf_right", "give HF_TOKEN the right to read this model"),
        (500, "", None, "Hugging Face answered 500"),
    ],
)
def test_what_the_hub_answers_becomes_advice(status, error_code, token, expected, tmp_path):
    """In a process of its own, as the hub's address is read at import."""
    handler = type("Answer", (HubAnswer,), {"status": status, "error_code": error_code})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    code = (
        "from tool_aware.model.base import check_model_available\n"
        "from tool_aware.console import UserError\n"
        f"try: check_model_available('mistralai/Gated-Model', hf_token={token!r})\n"
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


def test_the_cache_has_the_name_that_the_installed_transformers_takes_without_a_warning(tiny_model_dir):
    model = load_base_model(ModelSection(name=str(tiny_model_dir)), QuantizationSection())
    arguments = cache_arguments(model, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model(input_ids=torch.tensor([[1, 2]], device=model.device), **arguments)
    assert arguments["use_cache"]
