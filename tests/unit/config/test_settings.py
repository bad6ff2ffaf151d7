"""config.yaml: typed, typo-proof, and all of its problems in one message."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.environment import Environment, read_environment
from tool_aware.config.settings import Config, load_config
from tool_aware.console import UserError

SHIPPED = REPOSITORY / "config.yaml"


def problems_of(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


FREE_FORM = {"evaluation.costs", "evaluation.keyword_router", "evaluation.judged_as"}  # these name tools


def test_the_shipped_config_spells_out_every_key():
    """So that reading config.yaml is enough to know what there is."""

    def keys(model: type, prefix: str = "") -> set[str]:
        found = set()
        for name, field in model.model_fields.items():
            is_section = hasattr(field.annotation, "model_fields") and f"{prefix}{name}" not in FREE_FORM
            found |= keys(field.annotation, f"{prefix}{name}.") if is_section else {f"{prefix}{name}"}
        return found

    def written(values: dict, prefix: str = "") -> set[str]:
        found = set()
        for name, value in values.items():
            is_section = isinstance(value, dict) and f"{prefix}{name}" not in FREE_FORM
            found |= written(value, f"{prefix}{name}.") if is_section else {f"{prefix}{name}"}
        return found

    assert written(yaml.safe_load(SHIPPED.read_text())) == keys(Config)


def test_the_shipped_config_states_the_defaults_of_the_code(config):
    values = yaml.safe_load(SHIPPED.read_text())
    bare = Config.model_validate({"model": {"name": config.model.name}, "tools": values["tools"]})
    differing = {
        f"{section}.{key}"
        for section, values in config.as_dict().items()
        if isinstance(values, dict)
        for key, value in values.items()
        if bare.as_dict()[section][key] != value
    }
    assert differing <= FREE_FORM


def test_the_demo_config_extends_the_shipped_one(config):
    demo = load_config(REPOSITORY / "config.demo.yaml")
    assert demo.model.name == ".demo/base_model"
    assert (demo.dataset.dir, demo.training.output_dir) == (Path(".demo/data"), Path(".demo/output"))
    assert demo.tools == config.tools


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("config*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_loads_with_the_shipped_tools(path, config):
    assert load_config(path).tools == config.tools


def test_a_config_is_found_by_a_path_or_a_text(tmp_path, config):
    assert load_config(str(REPOSITORY / "config.yaml")) == config
    with pytest.raises(UserError, match=r"none\.yaml"):
        load_config(str(tmp_path / "none.yaml"))


def test_overrides_are_typed_like_the_file():
    config = load_config(SHIPPED, ["training.learning_rate=2e-5", "lora.r=16", "tools.0.description=Look it up"])
    assert (config.training.learning_rate, config.lora.r) == (2e-5, 16)
    assert config.tools[0].description == "Look it up"


def test_scientific_notation_is_a_number_with_and_without_a_point():
    for text, value in (("2e-4", 2e-4), ("2.5e-4", 2.5e-4), ("1E-3", 1e-3), (".5e-3", 5e-4)):
        assert load_config(SHIPPED, [f"training.learning_rate={text}"]).training.learning_rate == value


def test_all_problems_are_reported_at_once_with_the_nearest_name():
    message = problems_of(
        SHIPPED,
        "training.learning_rat=1",
        "lora.r=eight",
        "rl.r=3",
        "training.target_modules=x",
        "model.max_seq_length=1",
    )
    assert "5 problems" in message
    assert "training.learning_rat: unknown key; did you mean learning_rate?" in message
    assert "lora.r: input should be a valid integer (got 'eight')" in message
    assert "training.target_modules: unknown key; did you mean lora.target_modules?" in message
    assert "rl: unknown key" in message
    assert "model.max_seq_length: input should be greater than or equal to 64 (got 1)" in message


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("training.logging_steps=5", "logging.logging_steps?"),
        ("training.loging_steps=5", "logging.logging_steps?"),
        ("training.Logging_Steps=5", "logging.logging_steps?"),
        ("logging_steps=5", "logging.logging_steps?"),
        ("logging.save_step=5", "training.save_steps?"),
        ("lora.seed=1", "training.seed or dataset.seed or evaluation.seed?"),
        ("training.words=[a]", "known here: "),  # keys of a list's items have no path that could be written
        ("training.otherwise=x", "evaluation.keyword_router.otherwise?"),
        ("model.lora={}", "lora?"),
        ("training.learning_rat=1", "learning_rate?"),
        ("training.save_step=1", "save_steps?"),
        ("trainig.max_steps=1", "training?"),
    ],
)
def test_an_unknown_key_is_suggested_with_the_section_that_has_it(override, meant):
    message = problems_of(SHIPPED, override)
    key = override.partition("=")[0] if not override.startswith("trainig") else "trainig"
    assert f"  {key}: unknown key; {'' if meant.startswith('known') else 'did you mean '}{meant}" in message


def test_the_file_gets_the_same_suggestion_as_the_command_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {SHIPPED.resolve()}\ntraining:\n  logging_steps: 5\n")
    assert "training.logging_steps: unknown key; did you mean logging.logging_steps?" in problems_of(path)


@pytest.mark.parametrize("value", ["yes please", "1", "3.5", "[1]"])
def test_a_wrong_type_is_not_coerced(value):
    assert "optimization.gradient_checkpointing" in problems_of(SHIPPED, f"optimization.gradient_checkpointing={value}")


def test_a_value_that_may_be_of_several_types_is_one_mistake():
    message = problems_of(SHIPPED, "optimization.offload=maybe", "training.memory_budget_gib=-2")
    assert "2 problems" in message
    assert "optimization.offload: input should be a valid boolean or 'auto' (got 'maybe')" in message
    assert "training.memory_budget_gib: input should be greater than 0 or 'auto' (got -2)" in message


def test_only_checkpoints_can_be_offloaded():
    message = problems_of(SHIPPED, "optimization.offload=true", "optimization.gradient_checkpointing=false")
    assert "offload needs gradient_checkpointing" in message


def test_a_duplicate_key_is_named_with_its_line(tmp_path):
    path = write(tmp_path, "lora:\n  r: 8\n  r: 16\n")
    assert f"{path}:3: duplicate key 'r'" in problems_of(path)


def test_an_empty_a_missing_and_a_broken_file(tmp_path):
    assert "is empty" in problems_of(write(tmp_path, ""))
    assert "is empty" in problems_of(write(tmp_path, "# nothing but a comment\n"))
    assert "must be a mapping" in problems_of(write(tmp_path, "- a\n- b\n"))
    assert "config.yaml:2" in problems_of(write(tmp_path, "a: 1\n b: 2\n"))
    assert "not found" in problems_of(tmp_path / "none.yaml")


def test_missing_sections_are_named(tmp_path):
    message = problems_of(write(tmp_path, "lora: {r: 4}\n"))
    assert "model: missing" in message
    assert "tools: missing" in message


def test_a_secret_in_the_file_is_refused_and_not_repeated(tmp_path):
    message = problems_of(SHIPPED, "database.password=hunter2")
    assert "secrets belong in the environment" in message
    assert "hunter2" not in message


def test_a_secret_in_place_of_another_value_is_not_repeated(tmp_path):
    values = "evaluation: {batch_size: sk-proj-abcdefgh}\nlora: {r: [https://me:hunter2@host/x]}\n"
    path = write(tmp_path, f"extends: {SHIPPED}\n{values}")
    message = problems_of(path)
    assert "evaluation.batch_size: input should be a valid integer (got '***')" in message
    assert "https://***@host/x" in message
    assert "hunter2" not in message
    assert "abcdefgh" not in message


def test_a_path_that_is_left_empty_is_said_in_plain_words(tmp_path):
    assert "dataset.dir: must be a path (got None)" in problems_of(
        write(tmp_path, f"extends: {SHIPPED}\ndataset: {{dir: }}\n")
    )


def test_what_cannot_be_seen_in_a_key_is_named(tmp_path):
    assert "it holds U+00A0" in problems_of(write(tmp_path, "lora:\n\u00a0\u00a0r: 16\n"))
    assert "it holds U+200B" in problems_of(write(tmp_path, "lora:\n  r\u200b: 16\n"))


def test_malformed_overrides_are_explained():
    assert "expected section.key=value" in problems_of(SHIPPED, "lora.r")
    assert "is not an index" in problems_of(SHIPPED, "tools.9.name=x")


def test_extending_in_a_circle_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    assert "which extends it" in problems_of(tmp_path / "a.yaml")


def test_tools_are_checked():
    assert "the same name twice: web_search" in problems_of(SHIPPED, "tools.0.name=web_search")
    assert "must match" in problems_of(SHIPPED, "tools.0.name=two words")
    assert "is not a JSON Schema" in problems_of(SHIPPED, "tools.0.parameters.type=objekt")
    assert "examples.0" in problems_of(SHIPPED, "tools.0.examples=[{query: q, parameters: {limit: many}}]")


def test_both_quantisation_widths_at_once_are_refused():
    assert "exclude each other" in problems_of(SHIPPED, "quantization.load_in_8bit=true")


def test_the_environment_is_read_as_the_readme_says():
    environment = read_environment(
        {
            "POSTGRES_HOST": "db",
            "POSTGRES_PORT": "5433",
            "POSTGRES_PASSWORD": "hunter2",
            "HF_TOKEN": "hf_x",
            "USE_WANDB": "true",
        }
    )
    assert (environment.postgres_host, environment.postgres_port, environment.use_wandb) == ("db", 5433, True)
    assert environment.postgres_db == Environment().postgres_db == "cipher_analytics"
    assert "hunter2" not in repr(environment)
    assert "hf_x" not in repr(environment)


def test_a_dotenv_file_is_read_and_the_real_environment_wins(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text('export POSTGRES_DB="from_file"\nPOSTGRES_USER=from_file\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POSTGRES_USER", "from_shell")
    monkeypatch.setenv("POSTGRES_DB", "")  # so that monkeypatch removes what load_dotenv sets
    monkeypatch.delenv("POSTGRES_DB")
    environment = read_environment()
    assert (environment.postgres_db, environment.postgres_user) == ("from_file", "from_shell")


@pytest.mark.parametrize("variables", [{"POSTGRES_PORT": "http"}, {"POSTGRES_PORT": "70000"}, {"USE_WANDB": "maybe"}])
def test_nonsense_in_the_environment_is_named(variables):
    with pytest.raises(UserError) as caught:
        read_environment(variables)
    assert next(iter(variables)) in str(caught.value)


def test_a_config_holds_nothing_secret(config, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in str(config.as_dict())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tools.0.description=null", "is empty; say in a sentence what the tool does"),
        ("tools.0.description=''", "is empty; say in a sentence what the tool does"),
        ("tools.0.name=true", "tools.0.name"),
        ("tools.0.name=wetter_für", "must match"),
        ("tools.0.parameters=[]", "rag_retrieval: parameters are a list"),
        ("tools.0.parameters={properties: {a: {enum: [true, x], type: string}}}", "rag_retrieval.a.enum: true"),
        ("tools.0.parameters={properties: {a: {default: true, type: string}}}", "put quotes around what"),
        ("tools.0.parameters={properties: {a: {$ref: '#/$defs/X'}}}", "names nothing in this schema"),
    ],
)  # fmt: skip
def test_a_tool_that_cannot_be_used_is_refused_with_the_reason(override, words):
    message = problems_of(SHIPPED, override)
    assert words in message
    assert "1 problem in" in message


@pytest.mark.parametrize("parameters", ["null", "{}", "{properties: {a: {type: [string, null]}}}"])
def test_parameters_that_are_none_or_lack_their_type_are_of_type_object(parameters):
    config = load_config(SHIPPED, [f"tools.0.parameters={parameters}"])
    assert config.toolbox["rag_retrieval"].parameters["type"] == "object"
