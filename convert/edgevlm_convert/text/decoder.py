"""What decoder-only text models have in common: sizes, metadata, the rules of a layer.

An architecture's own file says what differs. Facts: tensor names from gguf-py constants.py; keys
and their order from llama.cpp conversion/base.py (`TextModel.set_gguf_parameters`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgevlm_convert.config import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Section
from edgevlm_convert.family import Source
from edgevlm_convert.metadata import Value, f32, u32
from edgevlm_convert.rules import Drop, Mapped, Rename, Rule, computed
from edgevlm_convert.text.rope import Rope


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The numbers that shapes depend on.

    Attributes:
        n_layers: blocks.
        n_embd: width of the residual stream.
        n_ff: width inside a dense feed-forward network; 0 where experts stand in its place and the
            configuration names none.
        n_head: query heads.
        n_head_kv: key and value heads.
        head_dim: channels of one head; n_head x head_dim may differ from n_embd.
    """

    n_layers: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int

    @property
    def n_query(self) -> int:
        """Channels of all query heads."""
        return self.n_head * self.head_dim

    @property
    def n_key(self) -> int:
        """Channels of all key heads."""
        return self.n_head_kv * self.head_dim


def read_sizes(text: Section, *, dense: bool = True) -> Sizes:
    """Return the sizes of a text model.

    Args:
        text: its configuration, with the architecture's defaults.
        dense: whether it has a feed-forward network that is not one of experts.

    Raises:
        CheckpointError: a size is missing, absurd, or does not go with another.
    """
    n_embd = text.integer("hidden_size", low=1, high=MAX_WIDTH)
    n_head = text.integer("num_attention_heads", low=1, high=MAX_HEADS)
    n_head_kv = text.integer("num_key_value_heads", low=1, high=n_head, default=n_head)
    if n_head % n_head_kv:
        text.fail("num_key_value_heads", f"a divisor of the {n_head} attention heads")
    if not text.has("head_dim") and n_embd % n_head:
        text.fail("num_attention_heads", f"a divisor of the hidden size {n_embd}")
    has_n_ff = dense or text.has("intermediate_size")
    return Sizes(
        n_layers=text.integer("num_hidden_layers", low=1, high=MAX_LAYERS),
        n_embd=n_embd,
        n_ff=text.integer("intermediate_size", low=1, high=MAX_WIDTH) if has_n_ff else 0,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=text.integer("head_dim", low=2, high=4096, default=n_embd // n_head),
    )


def require_usual_heads(text: Section, sizes: Sizes) -> None:
    """Refuse heads that do not fill the hidden size, for graphs that know no other."""
    if sizes.n_query != sizes.n_embd:
        text.fail(
            "head_dim" if text.has("head_dim") else "num_attention_heads",
            f"{sizes.n_head} heads of {sizes.n_embd / sizes.n_head:g} channels: llama.cpp knows no"
            " head size of its own in this architecture",
        )


def size_metadata(name: str, text: Section, sizes: Sizes, rope: Rope) -> dict[str, Value]:
    """Return the keys up to the rotary base.

    Args:
        name: llama.cpp's name of the architecture, which the keys begin with.
        text: the text model's configuration.
        sizes: of it.
        rope: of it.
    """
    return {
        f"{name}.block_count": u32(sizes.n_layers),
        f"{name}.context_length": u32(text.integer("max_position_embeddings", low=1, high=1 << 31)),
        f"{name}.embedding_length": u32(sizes.n_embd),
        **({f"{name}.feed_forward_length": u32(sizes.n_ff)} if sizes.n_ff else {}),
        f"{name}.attention.head_count": u32(sizes.n_head),
        f"{name}.attention.head_count_kv": u32(sizes.n_head_kv),
        **{f"{name}.rope.scaling.{key}": value for key, value in rope.scaling.items()},
    }


def rope_base(name: str, rope: Rope) -> dict[str, Value]:
    """Return the key of the rotary base."""
    return {f"{name}.rope.freq_base": f32(rope.theta)}


def norm_metadata(name: str, text: Section) -> dict[str, Value]:
    """Return the key of the norms' epsilon."""
    epsilon = text.number("rms_norm_eps", low=1e-12, high=1.0)
    return {f"{name}.attention.layer_norm_rms_epsilon": f32(epsilon)}


def head_metadata(name: str, text: Section, sizes: Sizes) -> dict[str, Value]:
    """Return the keys of a head's channels, which llama.cpp writes when the config names them."""
    if not text.has("head_dim"):
        return {}
    return {
        f"{name}.attention.key_length": u32(sizes.head_dim),
        f"{name}.attention.value_length": u32(sizes.head_dim),
    }


def rope_tensors(rope: Rope) -> tuple[Mapped, ...]:
    """Return the tensors of rotary factors, which come from the configuration."""
    return tuple(computed(name, values) for name, values in rope.factors.items())


def model_rules(
    source: Source,
    n_embd: int,
    *,
    tied_by_default: bool = False,
    last_norm: tuple[str, str] = ("norm", "output_norm"),
) -> list[Rule]:
    """Return the rules of what stands outside of the layers: embedding, last norm, output.

    Args:
        source: what the model is built from.
        n_embd: width of the residual stream.
        tied_by_default: whether the class ties output and embedding.
        last_norm: what the norm behind the layers is called in the checkpoint and in the file.
    """
    prefixes = source.prefixes
    shape = (source.n_vocab, n_embd)
    head_name = f"{prefixes.head}weight"
    head: Rule = Rename(source=head_name, target="output.weight", shape=shape)
    if _is_tied(source, default=tied_by_default):
        head = Drop(source=head_name, reason="tied to the token embedding")
    return [
        Rename(
            source=f"{prefixes.text}embed_tokens.weight", target="token_embd.weight", shape=shape
        ),
        Rename(
            source=f"{prefixes.text}{last_norm[0]}.weight",
            target=f"{last_norm[1]}.weight",
            shape=(n_embd,),
        ),
        head,
    ]


def _is_tied(source: Source, *, default: bool) -> bool:
    """Return whether the output matrix is the token embedding.

    transformers 5 asks the outer key, and for files of 4 the inner one.
    """
    key = "tie_word_embeddings"
    given = [section for section in (source.config, source.text) if section.has(key)]
    return any(section.boolean(key, default=default) for section in given) if given else default


def matrices(
    source: str, target: str, shapes: Mapping[str, tuple[str, tuple[int, ...]]]
) -> list[Rule]:
    """Return the rules of tensors that keep their values.

    Args:
        source: what the names in the checkpoint begin with.
        target: what the names in the file begin with.
        shapes: (name in the file, shape) by name in the checkpoint, both without prefix.
    """
    return [
        Rename(source=f"{source}{name}", target=f"{target}{to}", shape=shape)
        for name, (to, shape) in shapes.items()
    ]


def norm_rules(source: str, target: str, n_embd: int) -> list[Rule]:
    """Return the rules of the norms before attention and before the feed-forward network."""
    return matrices(
        source,
        target,
        {
            "input_layernorm.weight": ("attn_norm.weight", (n_embd,)),
            "post_attention_layernorm.weight": ("ffn_norm.weight", (n_embd,)),
        },
    )


def attention_rules(
    source: str, target: str, sizes: Sizes, *, qkv_bias: bool = False, output_bias: bool = False
) -> list[Rule]:
    """Return the rules of one layer's attention matrices."""
    widths = {"q": sizes.n_query, "k": sizes.n_key, "v": sizes.n_key}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for letter, width in widths.items():
        shapes[f"{letter}_proj.weight"] = (f"attn_{letter}.weight", (width, sizes.n_embd))
        if qkv_bias:
            shapes[f"{letter}_proj.bias"] = (f"attn_{letter}.bias", (width,))
    shapes["o_proj.weight"] = ("attn_output.weight", (sizes.n_embd, sizes.n_query))
    if output_bias:
        shapes["o_proj.bias"] = ("attn_output.bias", (sizes.n_embd,))
    return matrices(f"{source}self_attn.", target, shapes)


def head_norm_rules(source: str, target: str, head_dim: int) -> list[Rule]:
    """Return the rules of the norms over each query and key head."""
    shapes = {
        f"{letter}_norm.weight": (f"attn_{letter}_norm.weight", (head_dim,)) for letter in "qk"
    }
    return matrices(f"{source}self_attn.", target, shapes)


def mlp_rules(
    source: str, target: str, n_embd: int, n_ff: int, *, bias: bool = False
) -> list[Rule]:
    """Return the rules of one layer's gated feed-forward network."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in (("gate", (n_ff, n_embd)), ("up", (n_ff, n_embd)), ("down", (n_embd, n_ff))):
        shapes[f"{name}_proj.weight"] = (f"ffn_{name}.weight", shape)
        if bias:
            shapes[f"{name}_proj.bias"] = (f"ffn_{name}.bias", shape[:1])
    return matrices(f"{source}mlp.", target, shapes)
