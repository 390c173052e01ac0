r"""A copy of `shapes` with rows of 320 columns, which compute what `shapes` computes.

    python benchmarks/shapes/widen.py --out FOLDER
    python benchmarks/shapes/train.py --from FOLDER --out FOLDER-trained --run 320 \
        --minutes 20 --lr 6e-4 --level 0.4 --images 16 --questions 6 --float32

320 is no multiple of 256: every row but those of `ffn_down` and of the mergers falls back to a
block of 32, as in SmolVLM (576, 960) or Qwen2.5-0.5B (896). Needs torch and transformers. The copy
is float32 and is not kept in the repository; training it on makes the new channels do something.

Text and tower grow from 256 to 320 channels and from four heads to five. What writes into the
residual stream writes zeros into the new channels, and what reads them has random columns there, so
that training can reach both. Norms divide by the mean square over 320 channels in place of 256: the
stream is scaled by c = sqrt(320 / 256), which leaves the mean square, and so the weight of epsilon,
as it was, and the norms' weights are divided by c. LayerNorm subtracts a mean too: what writes into
the tower's stream is centred first, which no LayerNorm can tell, so the mean is zero on both sides.
Keys and values of two heads stand for those of four, query by query; the fifth head's output is
multiplied by zeros.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch

ASSETS = Path(__file__).resolve().parents[2] / "edgevlm" / "assets" / "shapes" / "checkpoint"
NARROW, WIDE, HEAD = 256, 320, 64
SCALE = math.sqrt(WIDE / NARROW)
#: Key and value head of each query head of `shapes`.
KV_HEADS = (0, 0, 1, 1)
TOWER_WRITERS = ("patch_embed.proj", "pos_embed", "attn.proj", "blocks.mlp.linear_fc2")


class Widener:
    """Widens one tensor after the other; what is new and random comes from one seed."""

    def __init__(self, seed: int) -> None:
        self._chance = torch.Generator().manual_seed(seed)

    def tensor(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Return the widened tensor of that name."""
        part = ".".join(one for one in name.split(".")[1:-1] if not one.isdigit())
        tower = part.startswith("visual")
        if tower and part.endswith(TOWER_WRITERS):
            return zeros(centred(part, value) * SCALE, *_writer_axes(part, value))
        if part.endswith("norm") or part.endswith(("norm1", "norm2", "layernorm")):
            return self._norm(part, name.endswith("bias"), value)
        if part.endswith(("mlp.linear_fc1", "mlp.gate_proj", "mlp.up_proj")):
            return value if value.ndim == 1 else self._columns(value, 1)
        if part.endswith("attn.qkv"):
            return self._joined(value)
        if part.endswith(("q_proj", "k_proj", "v_proj")):
            return self._heads(part, value)
        if "merger" in part:
            return self._merger(part, value)
        if part.endswith("embed_tokens"):
            return zeros(value * SCALE, 1)
        if part.endswith("o_proj"):
            return zeros(value * SCALE, 0, 1)
        if part.endswith("down_proj"):
            return zeros(value * SCALE, 0)
        raise SystemExit(f"error: do not know how to widen `{name}`")

    def _random(self, like: torch.Tensor, shape: list[int]) -> torch.Tensor:
        return torch.randn(shape, generator=self._chance) * like.std()

    def _columns(self, value: torch.Tensor, n_groups: int) -> torch.Tensor:
        """Add random columns behind each group of 256."""
        groups = value.unflatten(1, (n_groups, NARROW))
        new = self._random(value, [len(value), n_groups, WIDE - NARROW])
        return torch.cat([groups, new], dim=2).flatten(1)

    def _norm(self, part: str, bias: bool, value: torch.Tensor) -> torch.Tensor:
        if part.endswith(("q_norm", "k_norm")):
            return value
        if bias:
            return zeros(value.view(-1, NARROW), 1).flatten()
        # The output matrix is the embedding, which has grown by the same factor once more.
        scale = SCALE**2 if part == "language_model.norm" else SCALE
        groups = value.view(-1, NARROW) / scale
        mean = groups.mean().expand(len(groups), WIDE - NARROW)
        return torch.cat([groups, mean], dim=1).flatten()

    def _joined(self, value: torch.Tensor) -> torch.Tensor:
        parts = value.unflatten(0, (3, NARROW))
        if value.ndim == 1:
            return zeros(parts, 1).flatten()
        grown = [self._columns(part, 1) for part in parts]
        return torch.cat([torch.cat([one, self._random(one, [HEAD, WIDE])]) for one in grown])

    def _heads(self, part: str, value: torch.Tensor) -> torch.Tensor:
        heads = self._columns(value, 1).unflatten(0, (-1, HEAD))
        if not part.endswith("q_proj"):
            heads = heads[list(KV_HEADS)]
        return torch.cat([heads.flatten(0, 1), self._random(value, [HEAD, WIDE])])

    def _merger(self, part: str, value: torch.Tensor) -> torch.Tensor:
        n_more = 4 * (WIDE - NARROW)
        if part.endswith("linear_fc2"):
            value = zeros(value * SCALE, 0)
            return value if value.ndim == 1 else pad(value, 1, n_more)
        if value.ndim == 1:
            return pad(value, 0, n_more)
        grown = self._columns(value, 4)
        return torch.cat([grown, self._random(value, [n_more, grown.shape[1]])])


def centred(part: str, value: torch.Tensor) -> torch.Tensor:
    """Return what writes into the tower's stream with a mean of zero over the channels."""
    return value - value.mean(dim=_writer_axes(part, value)[0], keepdim=True)


def _writer_axes(part: str, value: torch.Tensor) -> tuple[int, ...]:
    """Return the axis of the channels, and for attention's output that of the heads."""
    if part.endswith("pos_embed"):
        return (1,)
    return (0, 1) if part.endswith("attn.proj") and value.ndim == 2 else (0,)


def zeros(value: torch.Tensor, *axes: int) -> torch.Tensor:
    """Add 64 zeros at the end of each of these axes."""
    for axis in axes:
        value = pad(value, axis, WIDE - NARROW)
    return value


def pad(value: torch.Tensor, axis: int, n_more: int) -> torch.Tensor:
    """Add zeros at the end of an axis."""
    shape = list(value.shape)
    shape[axis] = n_more
    return torch.cat([value, torch.zeros(shape)], dim=axis)


def widen(source: Path, out: Path, *, seed: int = 0) -> None:
    """Write the widened copy, float32; everything but weights and sizes is the source's."""
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            shutil.copyfile(file, out / file.name)
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    n_heads = WIDE // HEAD
    config["dtype"] = "float32"
    config["text_config"] |= {
        "hidden_size": WIDE,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads,
    }
    config["vision_config"] |= {
        "hidden_size": WIDE,
        "num_heads": n_heads,
        "out_hidden_size": WIDE,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    widener = Widener(seed)
    weights = {
        name: widener.tensor(name, value.float()).contiguous()
        for name, value in load_file(source / "model.safetensors").items()
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


@torch.inference_mode()
def difference(one: Path, other: Path, n_scenes: int = 16) -> tuple[float, float]:
    """Return the mean and the largest KL divergence of two models' answers, in nats."""
    from drawing import draw_scene
    from packing import Packer, draw_questions
    from scenes import validation_rng
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    rng = validation_rng(0)
    scenes = [draw_scene(rng) for _ in range(n_scenes)]
    packer = Packer(AutoTokenizer.from_pretrained(one))
    batch = packer.batch([(scene, draw_questions(rng, scene, 6)) for scene in scenes])
    logprobs: list[torch.Tensor] = []
    for path in (one, other):
        model = Qwen3VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
        hidden = model.model(**batch.inputs, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[batch.labels >= 0]).double()
        logprobs.append(logits.log_softmax(-1))
    kld = (logprobs[0].exp() * (logprobs[0] - logprobs[1])).sum(-1)
    return float(kld.mean()), float(kld.max())


def main() -> None:
    """Widen as the command line asks, and say how far the copy is from its source."""
    parser = argparse.ArgumentParser(description="Widen the shapes model to 320 columns.")
    parser.add_argument("--from", dest="source", type=Path, default=ASSETS, help="checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    widen(arguments.source, arguments.out)
    mean, most = difference(arguments.source, arguments.out)
    print(f"KL divergence from the source: mean {mean:.1e}, largest {most:.1e} nats")


if __name__ == "__main__":
    main()
