"""Train the built-in `shapes` model further from a checkpoint: colour and place first, then more.

    python benchmarks/shapes/train.py --from CHECKPOINT --out FOLDER --steps 3000

Needs torch, transformers and Pillow; uses a GPU where there is one, else bfloat16 autocast on the
CPU. The folder gets `log.jsonl` (a line every 20 steps, accuracy on validation scenes every
100), `state.pt` (to go on from, with `--resume`) and `checkpoint/` (bfloat16 safetensors with the
tokenizer). A SIGTERM or Ctrl-C saves and ends. With `--minutes` the learning rate follows the
clock instead of the step, for machines whose speed nobody can promise.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
from drawing import Mixture, draw_scene
from guides import Guides
from packing import Batch, Packer, draw_questions
from scenes import CAPTION, KINDS, Question, ask, training_rng, validation_rng
from torch.nn.functional import cross_entropy

#: Pictures to train on: more of them crowded, more of them with a number, than is scored.
TRAINING_MIXTURE = Mixture(counts=(1, 2, 2, 3, 3, 3, 4, 4), number_rate=0.75)
GUIDE_WEIGHTS = {"digit 1": 0.3, "digit 2": 0.3, "mention row": 0.3, "mention column": 0.3}
GUIDE_WEIGHT = 0.15
LOG_EVERY = 20
VALIDATE_EVERY = 100


class Trainer:
    """One training run: the model, its guides, the optimizer and where it stands."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

        self.arguments = arguments
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(arguments.source)
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(
            arguments.source, dtype=torch.float32
        ).to(self.device)
        torch.manual_seed(arguments.run)
        width = self.model.config.text_config.hidden_size
        self.guides = Guides(self.model.model, width=width).to(self.device)
        self.packer = Packer(self.tokenizer)
        parameters = [*self.model.parameters(), *self.guides.parameters()]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True
        )
        self.rng = training_rng(arguments.run)
        self.step = 0
        self.seconds = 0.0
        self.stopping = False

    def progress(self) -> float:
        """Return how much of the run is done, 0 to 1."""
        if self.arguments.minutes:
            return min(1.0, self.seconds / (60 * self.arguments.minutes))
        return min(1.0, self.step / self.arguments.steps)

    def learning_rate(self) -> float:
        """Return the rate now: a short rise, level for a half, then down in a line."""
        down = min(1.0, (1 - self.progress()) / (1 - self.arguments.level))
        return self.arguments.lr * min(1.0, (self.step + 1) / 60) * max(0.01, down)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits (n, vocabulary), the label and the place of each token to predict."""
        inputs = {name: value.to(self.device) for name, value in batch.inputs.items()}
        mixed = not self.arguments.float32
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed):
            hidden = self.model.model(**inputs, use_cache=False).last_hidden_state
            places = (batch.labels >= 0).to(self.device)
            logits = self.model.lm_head(hidden[places]).float()
        return logits, batch.labels.to(self.device)[places], places

    def train_step(self) -> dict[str, float]:
        """Draw a batch and learn from it; return the losses."""
        examples = []
        for _ in range(self.arguments.images):
            scene = draw_scene(self.rng, TRAINING_MIXTURE)
            examples.append((scene, draw_questions(self.rng, scene, self.arguments.questions)))
        batch = self.packer.batch(examples)
        logits, labels, places = self.forward(batch)
        weights = batch.weights.to(self.device)[places]
        answers = (cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
        guides = self.guides.losses(batch)
        total = answers
        for name, loss in guides.items():
            total = total + GUIDE_WEIGHTS.get(name, GUIDE_WEIGHT) * loss
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        losses = {"answers": answers.item()}
        return losses | {name: loss.item() for name, loss in guides.items()}

    @torch.no_grad()
    def validate(self, scenes: int = 96) -> dict[str, float]:
        """Return the share of right answers per kind on validation scenes.

        With every earlier answer token given, all tokens are predicted right exactly when greedy
        decoding would give the whole answer.
        """
        self.model.eval()
        right: dict[str, list[bool]] = collections.defaultdict(list)
        for start in range(0, scenes, 32):
            examples = []
            for index in range(start, start + 32):
                rng = validation_rng(index)
                scene = draw_scene(rng, TRAINING_MIXTURE)
                asked = [ask(rng, scene, kind) for kind in (*KINDS, CAPTION, "relation")]
                examples.append((scene, [question for question in asked if question]))
            self._score(examples, right)
        self.model.train()
        return {kind: sum(values) / len(values) for kind, values in right.items()}

    def _score(
        self, examples: list[tuple[Any, list[Question]]], right: dict[str, list[bool]]
    ) -> None:
        batch = self.packer.batch(examples)
        logits, labels, places = self.forward(batch)
        wrong: set[tuple[int, int]] = set()
        where = places.nonzero().tolist()
        for (row, place), same in zip(where, logits.argmax(-1).eq(labels).tolist(), strict=True):
            if not same:
                wrong.add((row, int(batch.segments[row, place])))
        for row, kinds in enumerate(batch.kinds):
            for segment, kind in enumerate(kinds, start=1):
                right[kind].append((row, segment) not in wrong)

    def save(self) -> None:
        """Write the state and the checkpoint, each complete or not at all."""
        out: Path = self.arguments.out
        partial = out / "state.pt.part"
        state = {
            "model": self.model.state_dict(),
            "guides": self.guides.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "rng": self.rng.getstate(),
        }
        torch.save(state, partial)
        os.replace(partial, out / "state.pt")
        write_checkpoint(self.model, self.arguments.source, out / "checkpoint")

    def resume(self, path: Path, *, keep_clock: bool) -> None:
        """Go on from a saved state; without `keep_clock` the schedule begins again."""
        state = torch.load(path, map_location=self.device, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.guides.load_state_dict(state["guides"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        if keep_clock:
            self.seconds = state["seconds"]
            self.rng.setstate(state["rng"])

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to log.jsonl and show it."""
        line = json.dumps({"step": self.step, "seconds": round(self.seconds, 1), **record})
        print(line, flush=True)
        with (self.arguments.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def run(self) -> None:
        """Train until the end of the schedule or a signal, then save."""
        self.model.train()
        sums: collections.Counter[str] = collections.Counter()
        summed = 0
        while self.progress() < 1 and not self.stopping:
            began = time.perf_counter()
            sums.update(self.train_step())
            self.step += 1
            summed += 1
            self.seconds += time.perf_counter() - began
            if self.step % LOG_EVERY == 0:
                mean = {name: round(value / summed, 4) for name, value in sums.items()}
                self.log({"lr": self.learning_rate(), "loss": mean})
                sums.clear()
                summed = 0
            if self.step % VALIDATE_EVERY == 0:
                began = time.perf_counter()
                accuracy = {kind: round(value, 4) for kind, value in self.validate().items()}
                self.seconds += time.perf_counter() - began
                self.log({"accuracy": accuracy})
            if self.step % self.arguments.save_every == 0:
                self.save()
        self.save()
        self.log({"accuracy": self.validate(), "end": True})


def write_checkpoint(model: Any, source: Path, folder: Path) -> None:
    """Write a bfloat16 checkpoint under `folder`, each file complete or not at all.

    Everything but the weights is the source's. The output matrix is the embedding (tied), so it
    is left out, as the source leaves it out.
    """
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.name != "model.safetensors":
            shutil.copyfile(file, folder / file.name)
    weights = {
        name: value.detach().cpu().to(torch.bfloat16)
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    partial = folder / "model.safetensors.part"
    save_file(weights, partial, metadata={"format": "pt"})
    os.replace(partial, folder / "model.safetensors")


def main() -> None:
    """Train as the command line asks."""
    parser = argparse.ArgumentParser(description="Train the shapes model further.")
    parser.add_argument("--from", dest="source", type=Path, required=True, help="checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, help="let the clock, not the steps, end the run")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--level", type=float, default=0.5, help="share of the run at full rate")
    parser.add_argument(
        "--float32", action="store_true", help="faster on processors without bfloat16"
    )
    parser.add_argument("--images", type=int, default=32, help="images a step")
    parser.add_argument("--questions", type=int, default=9, help="questions an image, at most")
    parser.add_argument("--run", type=int, default=1, help="number of the run: the seed")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--resume", type=Path, help="a state.pt to go on from")
    parser.add_argument("--new-schedule", action="store_true", help="with --resume: from the start")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(arguments)
    if arguments.resume:
        trainer.resume(arguments.resume, keep_clock=not arguments.new_schedule)

    def stop(_signal: int, _frame: Any) -> None:
        trainer.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    trainer.run()


if __name__ == "__main__":
    main()
