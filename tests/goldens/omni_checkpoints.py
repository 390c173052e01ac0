"""Qwen-Omni's checkpoints: the thinker as transformers saves it, and whole ones as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.goldens.files import read_golden_json
from tests.goldens.qwen3_checkpoints import Weights, rewrite
from tests.goldens.recipe import Config
from tests.synthetic import write_json
from tests.tokenizers.omni import as_qwen2

# Of what hears: as small as transformers builds it.
AUDIO: Mapping[str, int] = {
    "d_model": 8,
    "downsample_hidden_size": 4,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "encoder_layers": 1,
    "max_source_positions": 16,
    "num_mel_bins": 8,
}
# Whole numbers of the configurations that neither a shape of ours nor an image depends on.
FREE_NUMBERS = (
    *AUDIO,
    "audio_end_token_id",
    "audio_start_token_id",
    "audio_token_id",
    "audio_token_index",
    "output_dim",
    "position_id_per_seconds",
    "seconds_per_chunk",
    "video_token_index",
)


def make_whole(folder: Path, *, architecture: str, speaking: Sequence[str]) -> None:
    """Make a whole checkpoint of a thinker's.

    Args:
        folder: the checkpoint, which is changed.
        architecture: the whole model's class.
        speaking: names of tensors of what speaks.
    """

    def change(weights: Weights) -> Weights:
        others = {name: ("BF16", (2, 2), bytes(8)) for name in speaking}
        return {**{f"thinker.{name}": one for name, one in weights.items()}, **others}

    rewrite(folder, change)
    thinker = read_golden_json(folder / "config.json")
    config: Config = {
        "architectures": [architecture],
        "dtype": thinker.pop("dtype"),
        "enable_audio_output": True,
        "model_type": thinker["model_type"].removesuffix("_thinker"),
        # The name of a class that only its makers had.
        "thinker_config": {**thinker, "architectures": ["NaViTThinkerForConditionalGeneration"]},
        "talker_config": {"text_config": {"hidden_size": 4}, "vision_start_token_id": 151652},
    }
    write_json(folder / "config.json", config)


def as_vl(folder: Path, *, names: tuple[str, str], tower: Mapping[str, str], joined: bool) -> None:
    """Write a thinker as a Qwen-VL, without ears.

    Args:
        folder: the checkpoint, which is changed.
        names: of the class and its model type.
        tower: parts of names of the tower -> what Qwen-VL calls them.
        joined: whether Qwen-VL has query, key and value of the tower in one matrix.
    """

    def named(name: str) -> str:
        if name.startswith("visual."):
            for old, new in tower.items():
                name = name.replace(old, new)
        return name

    def change(weights: Weights) -> Weights:
        kept = {named(n): one for n, one in weights.items() if not n.startswith("audio_tower.")}
        return _joined(kept) if joined else kept

    rewrite(folder, change)
    as_qwen2(folder)
    config = read_golden_json(folder / "config.json")
    config["text_config"].pop("tie_word_embeddings", None)
    for section, kind in (("text_config", "text"), ("vision_config", "vision")):
        config[section]["model_type"] = f"{names[1]}_{kind}"
    for token in ("image", "video"):
        config[f"{token}_token_id"] = config.pop(f"{token}_token_index", None) or config.pop(
            f"{token}_token_id"
        )
    config |= {"architectures": [names[0]], "model_type": names[1]}
    del config["audio_config"]
    write_json(folder / "config.json", config)


def _joined(weights: Weights) -> Weights:
    """Join query, key and value of each of the tower's blocks."""
    found: Weights = {}
    for name, (dtype, shape, raw) in weights.items():
        head, letter, kind = (
            name.rpartition("attn.")[0],
            *name.rpartition("attn.")[2].split(".")[:2],
        )
        if not name.startswith("visual.") or letter not in ("q", "k", "v"):
            found[name] = (dtype, shape, raw)
        elif letter == "q":
            parts = [weights[f"{head}attn.{one}.{kind}"][2] for one in "qkv"]
            found[f"{head}attn.qkv.{kind}"] = (dtype, (3 * shape[0], *shape[1:]), b"".join(parts))
    return found
