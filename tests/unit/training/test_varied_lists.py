"""What a step sees depends on seed, step and row alone, and no example is longer than the plan expects."""

from __future__ import annotations

import pytest

from tool_aware.chat_format import encode_example
from tool_aware.rows import Row
from tool_aware.training.varied_lists import StepExamples

STEPS = 40


@pytest.fixture(scope="module")
def plain(toy_rows, tokenizer):
    return [encode_example(tokenizer, row.instruction, row.response) for row in toy_rows]


@pytest.fixture
def make(config, toy_rows, plain, tokenizer):
    def made(**settings):
        chosen = config.with_settings({"training.tool_variation": 0.5, **settings})
        return StepExamples.of(chosen, toy_rows, plain, tokenizer)

    return made


def test_about_the_asked_share_of_the_steps_is_varied_and_the_others_are_plain(make, plain):
    varied = make()
    lists = [varied.list_of(step) for step in range(200)]
    assert 75 <= sum(drawn is not None for drawn in lists) <= 125
    for step in (step for step in range(STEPS) if lists[step] is None):
        assert varied.of_step(step, [3, 1]) == [plain[3], plain[1]]
    assert make(**{"training.tool_variation": 0}) is None


def test_a_step_is_the_same_in_another_process_and_in_other_micro_batches(make):
    one, other = make(), make()
    for step in range(STEPS):
        whole = one.of_step(step, range(8))
        assert other.of_step(step, [5, 2]) == [whole[5], whole[2]]
    seeded = make(**{"training.seed": 7})
    assert any(seeded.of_step(step, range(8)) != one.of_step(step, range(8)) for step in range(STEPS))


def test_all_examples_of_a_step_share_their_list(make, tokenizer):
    varied = make()
    for step in range(STEPS):
        if drawn := varied.list_of(step):
            texts = [tokenizer.decode(example.prompt) for example in varied.of_step(step, range(8))]
            assert len({text.split("Tools:")[1].split("Answer in three")[0] for text in texts}) == 1
            assert all(f"- {name}(" in texts[0] for name in drawn.tools.tools.names)


def test_the_plan_expects_at_least_what_comes(make, plain):
    varied, shared = make(), 250
    most = varied.most_tokens(STEPS, shared)
    for step in range(STEPS):
        for example in varied.of_step(step, range(16)):
            assert len(example) <= most.prefix + most.rest
            assert len(example.completion) <= max(most.answer, *(len(each.completion) for each in plain))
    assert "of 40 steps list other tools" in varied.text(STEPS)


def test_rows_with_a_prompt_of_their_own_stay_as_they_are(config, toy_rows, tokenizer):
    row = Row("Pick a tool for: hello", toy_rows[0].response, dict(toy_rows[0].metadata))
    example = encode_example(tokenizer, row.instruction, row.response)
    varied = StepExamples.of(
        config.with_settings({"training.tool_variation": 1.0}), [row] * 4, [example] * 4, tokenizer
    )
    own = [step for step in range(STEPS) if varied.list_of(step).own_share == 1]
    assert own
    assert all(varied.of_step(step, [0, 1]) == [example, example] for step in own)


def test_examples_above_the_limit_are_not_drawn(config, toy_rows, plain, tokenizer):
    longest = max(map(len, plain))
    chosen = config.with_settings({"training.tool_variation": 1.0, "model.max_seq_length": longest})
    varied = StepExamples.of(chosen, toy_rows, plain, tokenizer)
    assert all(len(example) <= longest for step in range(STEPS) for example in varied.of_step(step, range(4)))
