"""Byte-level BPE as DeepSeek LLM has it, with what its vision models add for images.

write_tokenizer_janus(folder)         # tokens around an image too; "<|User|>: ... <|Assistant|>:"
write_tokenizer_deepseek_vl(folder)   # the placeholder alone; "User: ... Assistant:"
write_tokenizer_deepseek_ocr(folder)  # `<image>` alone; texts one after the other
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgevlm_convert.vocabulary.pre_tokenizer_table import BY_NAME, DIGITS

from tests.synthetic_tokenizer import bpe_merges, byte_letters
from tests.tokenizers.parts import Config, added_token, bos_template, write_files

BOS, EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
PLACEHOLDER = "<image_placeholder>"
AROUND = ("<begin_of_image>", "<end_of_image>")
_ROLES = ("<|User|>", "<|Assistant|>")
_BYTE_LEVEL: Config = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}
# A person's turn ends in two line feeds, an answer in the token that ends it.
_TEMPLATE = (
    "{%% for message in messages %%}{%% if message['role'] == 'user' %%}%s: "
    "{%% elif message['role'] == 'assistant' %%}%s: {%% endif %%}"
    "{%% if message['content'] is string %%}{{ message['content'] }}{%% else %%}"
    "{%% for part in message['content'] %%}{%% if part['type'] == 'image' %%}"
    "{{ '<image_placeholder>\\n' }}{%% elif part['type'] == 'text' %%}{{ part['text'] }}"
    "{%% endif %%}{%% endfor %%}{%% endif %%}"
    "{%% if message['role'] == 'assistant' %%}{{ eos_token }}{%% else %%}{{ '\\n\\n' }}"
    "{%% endif %%}{%% endfor %%}{%% if add_generation_prompt %%}{{ '%s:' }}{%% endif %%}"
)


_PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<image>\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)


def write_tokenizer_janus(folder: Path, *, n_tokens: int = 300) -> None:
    """Write Janus-Pro's files."""
    user, assistant = _ROLES
    _write(
        folder,
        (EOS, *_ROLES, *AROUND, PLACEHOLDER),
        n_tokens,
        template=_TEMPLATE % (user, assistant, assistant),
        names={
            "boi_token": AROUND[0],
            "eoi_token": AROUND[1],
            "image_token": PLACEHOLDER,
        },
    )


def write_tokenizer_deepseek_vl(folder: Path, *, n_tokens: int = 300) -> None:
    """Write DeepSeek-VL's files."""
    _write(
        folder,
        (EOS, PLACEHOLDER),
        n_tokens,
        template=_TEMPLATE % ("User", "Assistant", "Assistant"),
        names={"image_token": PLACEHOLDER},
    )


def write_tokenizer_deepseek_ocr(folder: Path, *, n_tokens: int = 300) -> None:
    """Write the files of DeepSeek-OCR's tokenizer."""
    names = {"image_token": "<image>"}
    _write(folder, (EOS, names["image_token"]), n_tokens, template=_PLAIN_TEMPLATE, names=names)


def _write(
    folder: Path, last: Sequence[str], n_tokens: int, *, template: str, names: dict[str, str]
) -> None:
    letters = byte_letters()
    special = [BOS, *last]
    merges = list(bpe_merges(n_tokens - len(letters) - len(special)))
    tokens = [*letters, *(left + right for left, right in merges), *special]
    ids = {token: number for number, token in enumerate(tokens)}
    *splits, digits = BY_NAME["deepseek-llm"].expressions
    assert digits == DIGITS
    tokenizer: Config = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(ids[token], token) for token in special],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                *(
                    {
                        "type": "Split",
                        "pattern": {"Regex": split},
                        "behavior": "Isolated",
                        "invert": False,
                    }
                    for split in splits
                ),
                {"type": "Digits", "individual_digits": False},
                _BYTE_LEVEL,
            ],
        },
        "post_processor": bos_template(BOS, ids[BOS]),
        "decoder": {**_BYTE_LEVEL, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: ids[token] for token in tokens if token not in special},
            "merges": [list(merge) for merge in merges],
        },
    }
    write_files(
        folder,
        tokenizer=tokenizer,
        settings={
            "bos_token": BOS,
            "clean_up_tokenization_spaces": False,
            "eos_token": EOS,
            "extra_special_tokens": names,
            "model_max_length": 16384,
            "pad_token": EOS,
            "tokenizer_class": "TokenizersBackend",
            "unk_token": None,
        },
        template=template,
    )
