"""Pre-tokenizers that llama.cpp implements, by name, with what a tokenizer.json says for each.

Facts from llama.cpp (src/llama-vocab.cpp: `llm_tokenizer_bpe` lists the expressions of every kind,
`llama_vocab::impl::load` gives names, `ignore_merges` and `add_bos`). The expressions here are
those of a tokenizer.json, applied one after another, every match a piece of its own; where the
runtime's own are another spelling of them they are in its comments or equal them letter by letter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """One implementation of llama.cpp.

    Attributes:
        name: `tokenizer.ggml.pre`.
        expressions: the regular expressions of a tokenizer.json, in order, spelled as
            `pre_tokenizers.canonical` spells them; empty: nothing in a tokenizer.json says so.
        also: other names of the same implementation.
        ignore_merges: a piece that is a token is taken whole, without merging.
        adds_bos: BOS is put in front when a file does not say.
        limit: "case" or "spaces": what the runtime's own expressions take for something else.
        runtime: those expressions; empty: they are the same.
    """

    name: str
    expressions: tuple[str, ...]
    also: tuple[str, ...] = ()
    ignore_merges: bool = False
    adds_bos: bool = False
    limit: str = ""
    runtime: tuple[str, ...] = ()


# What `ByteLevel` splits at when `use_regex` is set.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
DIGIT, DIGITS = r"\p{N}", r"\p{N}+"
CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_QWEN2 = rf"{CONTRACTION}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}"
_LLAMA3 = rf"{CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN35 = (
    rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_JAIS2 = (
    rf"{CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|\s{{512}}(?!\S)|\s{{256}}(?!\S)"
    r"|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)"
    r"|\s{1}"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CASED_TAIL = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_CASED_TAIL}"
_CASED_WORDS = (
    f"{_BEFORE}{_UPPER}*{_LOWER}+{CONTRACTION}?|{_BEFORE}{_UPPER}+{_LOWER}*{CONTRACTION}?"
)
_YOUTU = rf"{_CASED_WORDS}|\p{{N}}|{_CASED_TAIL}"
_GPT4O = rf"{_CASED_WORDS}|\p{{N}}{{1,3}}|{_CASED_TAIL}"
# What the runtime has in their place: it knows case in ASCII only, or not at all.
_ASCII_UPPER, _ASCII_LOWER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
_MARKED_UPPER, _MARKED_LOWER = r"((?=[\p{L}\p{M}])([^a-z]))", r"((?=[\p{L}\p{M}])([^A-Z]))"
_ANY = r"[\p{L}\p{M}]"


def _cased(expression: str, upper: str, lower: str) -> str:
    return expression.replace(_UPPER, upper).replace(_LOWER, lower)


_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_ASCII_SIGN_AND_WORD = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_DEEPSEEK_V3 = (
    rf"{_ASCII_SIGN_AND_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_SPARK = (
    rf"{_ASCII_SIGN_AND_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
)
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
    "\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _CJK
)
_BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
# Letters of scripts with case (DeepSeek LLM).
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_EXAONE_MOE = (
    rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = rf"{CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_MINICPM5 = rf"{CONTRACTION}|{_WORD}|\p{{N}}+|{_SIGNS}|{_SPACES}"

_CJK_SIGNS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_DEEPSEEK_LLM = (r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", _CJK_SIGNS, r"\s+$", _HAN, DIGITS)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, DIGIT)


def _spaces_apart(expressions: tuple[str, ...]) -> tuple[str, ...]:
    """Return them as the runtime applies them, for which no space beyond ASCII is in a range."""
    apart = {_HAN: rf"(?:(?!\s){_HAN[:-1]})+"}
    apart[_CJK_SIGNS] = _CJK_SIGNS.replace(r"\s?", r"\s?(?:(?!\s)", 1)[:-1] + ")+"
    return tuple(apart.get(expression, expression) for expression in expressions)


# Of two with the same expressions the first is written.
TABLE: tuple[PreTokenizer, ...] = (
    PreTokenizer(
        name="qwen2",
        expressions=(_QWEN2,),
        also=(
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "hunyuan",
            "solar-open",
            "stablelm2",
            "grok-2",
        ),
    ),
    PreTokenizer(name="qwen35", expressions=(_QWEN35,)),
    PreTokenizer(
        name="llama-bpe",
        expressions=(_LLAMA3,),
        also=(
            "llama3",
            "llama-v3",
            "lfm2",
            "pixtral",
            "falcon3",
            "falcon-h1",
            "midm-2.0",
            "jina-v5-nano",
        ),
        ignore_merges=True,
        adds_bos=True,
    ),
    PreTokenizer(name="glm4", expressions=(_LLAMA3,), also=("glm5",), ignore_merges=True),
    PreTokenizer(name="smaug-bpe", expressions=(_LLAMA3,), also=("dbrx", "chatglm-bpe")),
    PreTokenizer(
        name="smollm",
        expressions=(DIGIT, GPT2),
        also=(
            "command-r",
            "starcoder",
            "refact",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ),
    ),
    PreTokenizer(
        name="gpt-2",
        expressions=(GPT2,),
        also=(
            "granite-docling",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
        ),
    ),
    PreTokenizer(
        name="tekken",
        expressions=(_TEKKEN,),
        ignore_merges=True,
        adds_bos=True,
        limit="case",
        runtime=(_cased(_TEKKEN, _ASCII_UPPER, _ASCII_LOWER),),
    ),
    PreTokenizer(
        name="gpt-4o",
        expressions=(_GPT4O,),
        also=("llama4", "kanana2", "talkie", "minimax-m2"),
        limit="case",
        runtime=(_cased(_GPT4O, _ASCII_UPPER, _ASCII_LOWER),),
    ),
    PreTokenizer(
        name="granite-embed-multi-97m",
        expressions=(_GPT4O,),
        ignore_merges=True,
        limit="case",
        runtime=(_cased(_GPT4O, _MARKED_UPPER, _MARKED_LOWER),),
    ),
    PreTokenizer(
        name="youtu",
        expressions=(_YOUTU_SCRIPTS, _YOUTU),
        ignore_merges=True,
        limit="case",
        runtime=(_YOUTU_SCRIPTS, _cased(_YOUTU, _ANY, _ANY)),
    ),
    PreTokenizer(
        name="deepseek-v3",
        expressions=(r"\p{N}{1,3}", _CJK, _DEEPSEEK_V3),
        also=("hunyuan-dense", "joyai-llm", "hy_v4"),
    ),
    PreTokenizer(name="spark2_5", expressions=(r"\p{N}{1,3}", _CJK, _SPARK, DIGIT)),
    PreTokenizer(
        name="deepseek-llm",
        expressions=_DEEPSEEK_LLM,
        limit="spaces",
        runtime=_spaces_apart(_DEEPSEEK_LLM),
    ),
    PreTokenizer(
        name="deepseek-coder",
        expressions=_DEEPSEEK_CODER,
        limit="spaces",
        runtime=_spaces_apart(_DEEPSEEK_CODER),
    ),
    PreTokenizer(name="falcon", expressions=(r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
    PreTokenizer(name="bloom", expressions=(_BLOOM,), also=("poro-chat", "gpt3-finnish")),
    PreTokenizer(name="viking", expressions=(_BLOOM, DIGIT)),
    PreTokenizer(name="bailingmoe", expressions=(_BAILING,), also=("bailingmoe2", "llada-moe")),
    PreTokenizer(name="seed-coder", expressions=(_SEED,)),
    PreTokenizer(name="ufakzeka", expressions=(rf"{_WORD}|\p{{N}}|{_SIGNS}|{_SPACES}",)),
    PreTokenizer(name="laguna", expressions=(r"[^\n]+|[\n]+", _QWEN2)),
    PreTokenizer(name="exaone-moe", expressions=(_EXAONE_MOE,)),
    PreTokenizer(name="minicpm5", expressions=(r"\p{N}{1,3}", _MINICPM5), ignore_merges=True),
    PreTokenizer(name="jais-2", expressions=(_JAIS2,)),
    PreTokenizer(name="superbpe", expressions=(DIGITS, r"(?=(\d{3})+(?!\d))")),
    # Steps written in C++ that no tokenizer.json says, or says a little differently.
    PreTokenizer(name="afmoe", expressions=()),
    PreTokenizer(name="tiny_aya", expressions=(), also=("cohere2moe",)),
    PreTokenizer(name="chameleon", expressions=(), adds_bos=True),
    PreTokenizer(name="kimi-k2", expressions=()),
)
BY_NAME: Mapping[str, PreTokenizer] = {
    name: replace(known, name=name) for known in TABLE for name in (known.name, *known.also)
}
