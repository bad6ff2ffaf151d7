"""Files beside the weights for the servers of others: a chat template and a parser for `tools`, a Modelfile for Ollama.

None of them is read unless a server is told to.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tool_aware.chat_format import chat_format, puts_space_before_runs
from tool_aware.console import say
from tool_aware.files import write_text
from tool_aware.paths import MODELFILE_NAME, TOOLS_TEMPLATE_NAME, VLLM_PARSER_NAME
from tool_aware.router_settings import RouterSettings
from tool_aware.training.export.tools_template import tools_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GGUF_NAME = "router.gguf"
_MODELFILE = '''\
# Beside {gguf}, the merged model as llama.cpp's convert_hf_to_gguf.py writes it: ollama create router -f {name}
# Send the filled prompt_template.txt as the prompt. Written by Ollama's documentation; not tried.
FROM ./{gguf}
TEMPLATE """{template}"""
PARAMETER temperature 0
PARAMETER top_k 1
PARAMETER repeat_penalty 1
PARAMETER num_ctx {context}
PARAMETER num_predict {tokens}
PARAMETER stop "{end}"
'''


def write_serving_files(folder: Path, tokenizer: PreTrainedTokenizerBase, settings: RouterSettings) -> None:
    """Write the files into the folder of an adapter or a merged model; the template only if its ids are the trained."""
    template = tools_template(tokenizer, settings)
    if template is None:
        say(f"no {TOOLS_TEMPLATE_NAME}: it would not give the trained prompts with this model's chat template")
    else:
        write_text(folder / TOOLS_TEMPLATE_NAME, template)
        shutil.copyfile(Path(__file__).with_name(VLLM_PARSER_NAME), folder / VLLM_PARSER_NAME)
    write_text(folder / MODELFILE_NAME, modelfile(tokenizer, settings))


def modelfile(tokenizer: PreTrainedTokenizerBase, settings: RouterSettings) -> str:
    """Return a Modelfile whose prompts are the trained ones, as far as Ollama's documentation says how it makes them.

    Ollama puts the BOS in front of a prompt by itself, as llama.cpp does: for tokenizers from SentencePiece always, for
    others where they do. Its repeat_penalty is not 1 unless told.
    """
    form = chat_format(tokenizer)
    begin = list(form.begin)
    is_put_there = puts_space_before_runs(tokenizer) is not None or tokenizer("a")["input_ids"][0] in begin
    if begin[:1] == [tokenizer.bos_token_id] and is_put_there:
        begin = begin[1:]
    before = _text(tokenizer, begin) + form.before
    behind = form.after + _text(tokenizer, form.middle) + form.lead
    return _MODELFILE.format(
        name=MODELFILE_NAME,
        gguf=GGUF_NAME,
        template=f"{before}{{{{ .Prompt }}}}{behind}",
        context=settings.model.max_seq_length + settings.max_new_tokens,
        tokens=settings.max_new_tokens,
        end=form.end,
    )


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
