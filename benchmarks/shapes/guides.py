"""Supervision inside the network while it trains; nothing of it is saved.

A question such as "Is the red circle left of the blue square?" asks for two hops: find two
things, then compare where they are. From the answer alone a small network hardly learns it, for
a single "yes" or "no" tells neither hop apart. So linear guides read what each hop should know at
the place where it should know it, and their errors flow back into the network:

- visual tokens, as the projector hands them over: the colour, shape and digits under them;
- the last token of each thing mentioned, early in the text model: the row and column of its cell;
- the token before a relation's answer, one layer before the last: how the two things lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from packing import Batch

UNDER_TOKEN_CLASSES = (9, 7, 11, 11)
MENTION_LAYER = 1
RELATION_LAYER = 2


class Guides(nn.Module):
    """Linear guides on a model of `transformers.Qwen3VLModel`, fed by forward hooks."""

    def __init__(self, model: Any, *, width: int) -> None:
        super().__init__()
        self.under_tokens = nn.ModuleList(nn.Linear(width, n) for n in UNDER_TOKEN_CLASSES)
        self.mentions = nn.ModuleList(nn.Linear(width, 3) for _ in range(2))
        self.relations = nn.ModuleList(nn.Linear(width, 3) for _ in range(2))
        self._seen: dict[str, torch.Tensor] = {}
        self._watch("visual", model.visual.merger)
        self._watch("mentions", model.language_model.layers[MENTION_LAYER])
        self._watch("relations", model.language_model.layers[RELATION_LAYER])

    def _watch(self, name: str, module: nn.Module) -> None:
        def keep(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._seen[name] = output

        module.register_forward_hook(keep)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the mean cross-entropy of each guide for the forward pass just made."""
        visual = self._seen["visual"].float()
        under_tokens = batch.under_tokens.to(visual.device)
        found = {
            name: _present(guide(visual), under_tokens[:, i])
            for i, (name, guide) in enumerate(
                zip(("colour", "shape", "digit 1", "digit 2"), self.under_tokens, strict=True)
            )
        }
        for kind, guides, targets in (
            ("mention", self.mentions, batch.mentions),
            ("relation", self.relations, batch.relations),
        ):
            if len(targets):
                targets = targets.to(visual.device)
                hidden = self._seen[f"{kind}s"][targets[:, 0], targets[:, 1]].float()
                for i, (axis, guide) in enumerate(zip(("row", "column"), guides, strict=True)):
                    found[f"{kind} {axis}"] = cross_entropy(guide(hidden), targets[:, 2 + i])
        return found


def _present(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy where something is, and a fifth of that where nothing is.

    Few visual tokens have a digit under them; a plain mean would hardly hear of those.
    """
    each = cross_entropy(logits, targets, reduction="none")
    there = targets > 0
    weights = torch.where(there, 1 / there.sum().clamp(min=1), 0.2 / (~there).sum().clamp(min=1))
    return (each * weights).sum()
