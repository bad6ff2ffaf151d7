"""Ids equal those of any model's own chat template, users cannot write control tokens, answers end where it says."""

from __future__ import annotations

import random
from datetime import date

import pytest
from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from transformers import PreTrainedTokenizerFast
from transformers.integrations.mistral.tokenizer import MistralConverter

from tests.fixtures import chat_templates as shapes
from tests.unit.test_prompt import PIECES
from tool_aware.chat_format import (
    IGNORE_INDEX,
    answer_start,
    chat_format,
    encode_example,
    encode_prompt,
    end_id,
    tool_label_tokens,
    tool_name_tokens,
    with_heavy_name,
)
from tool_aware.console import UserError
from tool_aware.demo.toy_model import vocabulary_file
from tool_aware.engine.packing import pack
from tool_aware.prompt import parse_response, render_instruction
from tool_aware.tokenizer import build_tokenizer, load_tokenizer

SHAPES = {
    "chatml": (shapes.CHATML, "<|im_end|>"),
    "chatml with a system turn": (shapes.CHATML_WITH_SYSTEM, "<|im_end|>"),
    "thinking": (shapes.THINKING, "<|im_end|>"),
    "llama 3": (shapes.LLAMA_3, "<|eot|>"),
    "gemma": (shapes.GEMMA, "<end_of_turn>"),
    "mistral v7": (shapes.MISTRAL_V7, "</s>"),
    "zephyr": (shapes.ZEPHYR, "</s>"),
}
CONTROL_TEXT = ("</s>", "<s>", "<|im_end|>", "<|im_start|>assistant\n", "[INST]", "[/INST]", "<|eot|>", "<end_of_turn>")
ANSWER = "Tool: web_search\nParameters: {}\nReasoning: x"


def sentencepiece_tokenizer(template):
    return build_tokenizer(vocabulary_file(), chat_template=template)


def made_by_the_template(tokenizer, user, answer=None):
    messages = [{"role": "user", "content": user}]
    messages += [{"role": "assistant", "content": answer}] if answer else []
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=answer is None, enable_thinking=False, return_dict=False
    )


def random_text(generator, pieces):
    return "".join(generator.choice(pieces) for _ in range(generator.randint(1, 60)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [shapes.byte_level_tokenizer, sentencepiece_tokenizer], ids=["bytes", "pieces"])
def test_ids_equal_the_templates_for_200_random_texts(shape, make):
    template, end = SHAPES[shape]
    tokenizer = make(template)
    if end not in tokenizer.get_vocab():
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [mark for mark in shapes.CONTROLS if mark in template]}
        )
    # what no control token is made of: those are the next test's
    generator, pieces = random.Random(0), [piece for piece in PIECES if not set(piece) & set("<>[]")]
    for _ in range(200):
        user, answer = random_text(generator, pieces), "Tool: x\nReasoning: " + random_text(generator, pieces) + "."
        example = encode_example(tokenizer, user, answer)
        whole = made_by_the_template(tokenizer, user, answer)
        assert example.input_ids == whole[: len(example)], (user, answer)
        assert example.prompt == made_by_the_template(tokenizer, user), user
        assert example.completion[-1] == end_id(tokenizer) == tokenizer.convert_tokens_to_ids(end)


@pytest.mark.parametrize("shape", SHAPES)
def test_control_tokens_that_a_user_types_stay_text(shape):
    tokenizer = shapes.byte_level_tokenizer(SHAPES[shape][0])
    added = {token for token, made in tokenizer.added_tokens_decoder.items() if made.special}
    plain = [token for token in encode_prompt(tokenizer, "plain") if token in added]
    generator = random.Random(1)
    for _ in range(200):
        user = random_text(generator, [*CONTROL_TEXT, "a", " ", "\n", "é"])
        ids = encode_prompt(tokenizer, user)
        assert [token for token in ids if token in added] == plain
        kept = user.strip() if chat_format(tokenizer).strips else user
        assert kept in tokenizer.decode(ids)


def test_the_loss_covers_the_answer_and_its_end_only():
    tokenizer = shapes.byte_level_tokenizer(shapes.CHATML_WITH_SYSTEM)
    example = encode_example(tokenizer, "hi", ANSWER)
    labels = [label for label in example.labels if label != IGNORE_INDEX]
    assert tokenizer.decode(labels) == ANSWER + "<|im_end|>"
    assert example.labels[: len(example.prompt)] == [IGNORE_INDEX] * len(example.prompt)


def test_an_answer_of_a_model_that_can_think_comes_at_once():
    tokenizer = shapes.byte_level_tokenizer(shapes.THINKING)
    example = encode_example(tokenizer, "hi", ANSWER)
    assert tokenizer.decode(example.prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert example.input_ids == made_by_the_template(tokenizer, "hi", ANSWER)[: len(example)]


def test_a_template_that_opens_thoughts_is_used_as_a_server_would():
    tokenizer = shapes.byte_level_tokenizer(shapes.ALWAYS_THINKING)
    assert encode_prompt(tokenizer, "hi") == made_by_the_template(tokenizer, "hi")


def test_a_tokenizer_that_joins_prompt_and_answer_is_used_as_a_server_would():
    tokenizer = shapes.byte_level_tokenizer(shapes.LLAMA_3, split=shapes.GPT2_SPLIT)
    example = encode_example(tokenizer, "hi", ANSWER)
    assert example.prompt == made_by_the_template(tokenizer, "hi")
    assert example.input_ids != made_by_the_template(tokenizer, "hi", ANSWER)
    assert tokenizer.decode(example.completion) == ANSWER + "<|eot|>"


def test_tokens_that_take_white_space_behind_them_are_read_as_the_tokenizer_does():
    template = shapes.ZEPHYR.replace("eos_token + '\n'", "'<|end|>\n'")
    tokenizer = shapes.with_rstrip(template, "<|user|>", "<|assistant|>", "<|end|>")
    example = encode_example(tokenizer, "hi", ANSWER)
    assert example.prompt == made_by_the_template(tokenizer, "hi")
    assert example.input_ids == made_by_the_template(tokenizer, "hi", ANSWER)[: len(example)]


@pytest.mark.parametrize("shape", SHAPES)
def test_names_of_tools_continue_the_label_as_in_an_answer(shape):
    tokenizer = shapes.byte_level_tokenizer(SHAPES[shape][0])
    completion = encode_example(tokenizer, "hi", ANSWER).completion
    label, names = tool_label_tokens(tokenizer), tool_name_tokens(tokenizer, ["web_search", "rag_retrieval"])
    assert completion[: len(label)] == label
    assert completion[len(label) : len(label) + len(names["web_search"])] == names["web_search"]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_heavy_labels_are_those_of_the_tools_name(shape):
    tokenizer = shapes.byte_level_tokenizer(SHAPES[shape][0])
    example = with_heavy_name(tokenizer, encode_example(tokenizer, "hi", ANSWER), "web_search", 4.0)
    heavy = [i for i, weight in zip(example.completion, example.label_weights, strict=True) if weight == 4.0]
    assert tokenizer.decode(heavy) == " web_search\n"
    assert sum(example.label_weights) == len(example.completion) + 3 * len(heavy)
    alone = with_heavy_name(tokenizer, encode_example(tokenizer, "hi", ANSWER), "web_search", 1.0, rest=0.0)
    assert sum(alone.label_weights) == len(heavy)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_prompts_share_their_beginning_whatever_the_template_writes(shape, config):
    tokenizer = shapes.byte_level_tokenizer(SHAPES[shape][0])
    queries = ("first", " second one", "日本", "\n\n4")
    instructions = [render_instruction(query, config.toolbox) for query in queries]
    examples = [encode_example(tokenizer, instruction, ANSWER) for instruction in instructions]
    packed = pack(examples)
    saved = sum(map(len, examples)) - packed.input_ids.shape[1]
    beginning = encode_prompt(tokenizer, instructions[0].removesuffix("first"))
    assert saved >= (len(queries) - 1) * (len(beginning) - 40)  # the end of the template comes behind the query


def test_a_template_with_todays_date_writes_the_same_one_every_day(tmp_path):
    shapes.byte_level_tokenizer(shapes.LLAMA_3_DATED).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    prompt = tokenizer.decode(encode_prompt(tokenizer, "hi"))
    assert "Today: 26 Jul 2024" in prompt
    assert date.today().strftime("%d %b %Y") not in prompt
    assert encode_prompt(tokenizer, "hi") == made_by_the_template(tokenizer, "hi")  # exported with the adapter


def test_equal_formats_have_equal_identities(tokenizer):
    chatml, again = (chat_format(shapes.byte_level_tokenizer(shapes.CHATML)) for _ in range(2))
    others = [chat_format(shapes.byte_level_tokenizer(template)) for template, _ in SHAPES.values()]
    assert chatml.sha256 == again.sha256
    assert len({form.sha256 for form in [*others, chat_format(tokenizer)]}) == len(SHAPES) + 1


# ---- Mistral, against mistral-common --------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]"])
def test_mistral_v02_keeps_its_ids_whatever_spaces_its_template_has(template, tokenizer):
    if template:
        template += "{% if messages | length > 1 %}{{ messages[1].content + eos_token }}{% endif %}"
    made = build_tokenizer(vocabulary_file(), chat_template=template)
    assert encode_example(made, "hi", ANSWER) == encode_example(tokenizer, "hi", ANSWER)
    assert answer_start(made) == " "


@pytest.fixture(scope="module")
def tekken():
    file = vocabulary_file().with_name("tekken_240718.json")
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=MistralConverter(str(file)).converted(), **marks)
    made.chat_template = shapes.MISTRAL_TEKKEN
    return file, made


def test_tekken_ids_equal_the_reference_encoders_for_200_random_texts(tekken):
    file, made = tekken
    reference = MistralTokenizer.from_file(str(file), mode=ValidationMode.finetuning)
    generator = random.Random(0)
    for _ in range(200):
        user, answer = random_text(generator, PIECES), "Tool: x\nReasoning: " + random_text(generator, PIECES) + "."
        messages = [UserMessage(content=user), AssistantMessage(content=answer)]
        expected = reference.encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens
        assert encode_example(made, user, answer).input_ids == expected, (user, answer)
    assert answer_start(made) == ""


# ---- what cannot be used --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('system first') }}", "refuses a user turn alone: system first"),
        ("{{ messages[0].nothing.at_all }}", "refuses a user turn alone"),
        ("{{ messages[0]['role' ", "refuses a user turn alone"),
        ("hello", "does not write each turn once"),
        ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", "does not write each turn once"),
        ("{% for m in messages %}{{ '### ' + m.role + m.content }}{% endfor %}", "no control token"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_message(template, problem, tmp_path):
    shapes.byte_level_tokenizer(template).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 400}')
    with pytest.raises(UserError, match=problem) as caught:
        load_tokenizer(str(tmp_path))
    assert caught.value.where == f"model.name: {tmp_path}"
    assert caught.value.fix


def test_a_folder_with_tekken_json_alone_is_one_message(tmp_path):
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(UserError, match=r"only tekken\.json"):
        load_tokenizer(str(tmp_path))


def test_answers_read_back_from_the_ids():
    tokenizer = shapes.byte_level_tokenizer(shapes.LLAMA_3)
    completion = encode_example(tokenizer, "hi", ANSWER).completion
    assert parse_response(tokenizer.decode(completion, skip_special_tokens=True)).call.tool == "web_search"
