"""Which text input and which augmentation let a hypernetwork follow prompts that it was not trained on.

A reduced problem: one 256 x 256 site of the world's base, all of its library's effects, a small network, one CPU core.
`python eval/studies/text_generalisation.py --library DIR --base DIR --text DIR --work DIR [ROW ...]` trains every row
of ROWS (or those named), appends each result to WORK/rows.jsonl, skips what stands there, and prints the table.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from p2e.bases import WeightReader, get_base
from p2e.config import TrainConfig
from p2e.hypernet.losses import update_inner, update_norms
from p2e.hypernet.model import Bound, Hypernet, Sites
from p2e.hypernet.text import sentence_vectors
from p2e.lora.library import Manifest, prepare_library
from p2e.lora.prepared import PreparedLibrary, SiteRecord
from p2e.text import TextStates
from p2e.training.loop import Trainer
from p2e.world.effects import EFFECTS
from p2e.world.hypernet import KeptEncoder
from p2e.world.states import kept_states

SITE = "blocks.5.self_attn.o"
RANK, TRAINED, ALL = 4, 4, 6  # rank; paraphrases of an effect that are trained on, and in all
SMALL: dict[str, Any] = {
    "hypernet": {"width": 96, "layers": 3, "heads": 8, "latents": 16, "rank": RANK, "ffn_ratio": 2},
    "loss": {"update": 0.5}, "steps": 500, "sites_per_step": 1, "effects_per_step": 46, "learning_rate": 8e-3,
    "warmup_fraction": 0.04, "decay": "cosine", "ema": 0.99, "device": "cpu", "tensorboard": False, "log_every": 100,
}  # fmt: skip


def sentence(**text: Any) -> dict[str, Any]:
    return {"text": {"form": "sentence", **text}}


def anchors(temperature: float, whiten: str = "centre") -> dict[str, Any]:
    return sentence(whiten=whiten, anchors=92, temperature=temperature)


# name -> number of seeds, settings; "text" goes into hypernet, "mean" adds the library's mean to the prediction
ROWS: dict[str, tuple[int, dict[str, Any]]] = {
    "tokens": (2, {}),
    "sentence": (2, sentence()),
    "anchors 0.1": (2, anchors(0.1)),
    "anchors 0.1, noise 0.5, blend 0.3": (2, anchors(0.1) | {"augment": {"noise": 0.5, "blend": 0.3}}),
    "anchors 0.05, noise 0.5, blend 0.3": (2, anchors(0.05) | {"augment": {"noise": 0.5, "blend": 0.3}}),
    "effects, anchors 0.1, noise 0.5, blend 0.3": (
        2,
        anchors(0.1, "effects") | {"augment": {"noise": 0.5, "blend": 0.3}},
    ),
    "effects, noise 1": (2, sentence(whiten="effects") | {"augment": {"noise": 1.0}}),
    "tokens, dropout 0.5": (1, {"augment": {"token_dropout": 0.5}}),
    "tokens, noise 1": (1, {"augment": {"noise": 1.0}}),
    "sentence, noise 1": (1, sentence() | {"augment": {"noise": 1.0}}),
    "sentence, mix": (1, sentence() | {"augment": {"mix": 1.0}}),
    "sentence, blend 0.3": (1, sentence() | {"augment": {"blend": 0.3}}),
    "effects": (1, sentence(whiten="effects")),
    "prompts, noise 1": (1, sentence(whiten="prompts") | {"augment": {"noise": 1.0}}),
    "effects, mix, noise 1, blend 0.3": (
        1,
        sentence(whiten="effects") | {"augment": {"mix": 1.0, "noise": 1.0, "blend": 0.3}},
    ),
    "tokens, weight decay 1": (1, {"weight_decay": 1.0}),
    "tokens, stopped at 200": (1, {"steps": 200}),
    "anchors 0.05, noise 0.5": (1, anchors(0.05) | {"augment": {"noise": 0.5}}),
    "tokens, mean added": (1, {"mean": True}),
}


class Problem:
    """The library at one site, its prompts by split, and the errors of predictions there."""

    def __init__(self, library: Path, base: Path, text: Path, work: Path) -> None:
        self.base, self.work = get_base("world"), work
        self.weights = WeightReader(self.base, base)
        prepared = work / "prepared"
        if not prepared.exists():
            prepare_library(Manifest.load(library / "manifest.yaml"), prepared, base=self.base, rank=RANK)
        self.whole = PreparedLibrary.open(prepared)
        index = self.whole.index
        one = index.model_copy(update={"sites": tuple(site for site in index.sites if site.key == SITE)})
        self.library = PreparedLibrary(self.whole.path, one)
        self.record = self.library.site(SITE)
        states = kept_states([prompt for spec in EFFECTS for prompt in spec.prompts], text)
        self.states = {spec.name: states[i * ALL : (i + 1) * ALL] for i, spec in enumerate(EFFECTS)}
        splits = [effect.split for effect in self.library.effects]
        of = {name: [i for i, split in enumerate(splits) if split == name] for name in ("train", "heldout", "ood")}
        new = tuple(range(TRAINED, ALL))
        self.sets = {
            "seen": (of["train"], (0, 1)), "unseen": (of["train"], new),
            "heldout": (of["heldout"], range(ALL)), "ood": (of["ood"], range(ALL)),
        }  # fmt: skip
        self.train = torch.tensor(of["train"])

    def prompts(self, name: str) -> tuple[TextStates, Tensor]:
        """Token states of every prompt of a set, and the effect of each."""
        effects, which = self.sets[name]
        rows = [(self.states[self.library.effects[e].name][p], e) for e in effects for p in which]
        states = TextStates(torch.stack([t.states for t, _ in rows]), torch.stack([t.mask for t, _ in rows]))
        return states, torch.tensor([e for _, e in rows])


def summary(error: Tensor, predicted: Tensor, target: Tensor) -> list[float]:
    """Means of relative squared error and cosine of the update, from squared norms of difference and both sides."""
    cosine = (predicted + target - error) / 2 / (predicted * target).sqrt()
    return [float((error / target).mean()), float(cosine.mean())]


def add_mean(model: Any, a: Tensor, b: Tensor) -> None:
    """Adds constants [S, d_in, r] and [S, d_out, r] to what the model predicts for its only site."""
    bind = model.bind

    def bound(sites: Sites) -> Bound:
        found: Bound = bind(sites)
        return found._replace(a=found.a + a, b=found.b + b)

    model.bind = bound


def train_row(problem: Problem, seed: int, changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains one row -> errors on every set, seconds."""
    values = SMALL | {k: v for k, v in changes.items() if k not in ("text", "mean")}
    values["hypernet"] = values["hypernet"] | {"text": changes.get("text", {})}
    places = {"library": problem.library.path, "output": str(folder), "base": "world", "seed": seed}
    trainer = Trainer(
        TrainConfig.parse(values | places), problem.base, problem.weights, problem.library, KeptEncoder(problem.states)
    )
    sites, a, b, _ = trainer.source.targets(0, torch.tensor([0]), torch.arange(len(problem.library.effects)))
    model = trainer.average
    assert isinstance(model, Hypernet)
    if changes.get("mean"):
        for each in (trainer.model, model):
            add_mean(each, a[:, problem.train].mean(1).mT, b[:, problem.train].mean(1))
    started = time.perf_counter()
    trainer.run()
    result: dict[str, Any] = {"seconds": time.perf_counter() - started, "loss": trainer.history[-1]["update_error"]}
    for name in problem.sets:
        states, effects = problem.prompts(name)
        text = model.text_input(states)
        with torch.no_grad():
            parts = [
                model.predict_sites([sites], text.states[i], text.mask[i])[0]
                for i in torch.arange(len(effects)).split(32)
            ]
        a_hat, b_hat = (torch.cat([part[k] for part in parts], 1) for k in (0, 1))
        result[name] = summary(*(x[0].double() for x in update_norms(a_hat, b_hat, a[:, effects], b[:, effects])))
    return result


def gram(records: list[SiteRecord]) -> Tensor:
    """<dW_i, dW_j> over some sites, [F, F]."""
    return torch.stack(
        [
            update_inner(r.b.double()[:, None], r.a.double()[:, None], r.b.double()[None], r.a.double()[None])
            for r in records
        ]
    ).sum(0)


def controls(problem: Problem, inner: Tensor) -> dict[str, dict[str, list[float]]]:
    """What needs no network: combinations of the training LoRAs, by the mean, by a random pick, by text, and the best
    there can be (weights fitted to the answer)."""
    train, spec = problem.train, [problem.states[e.name] for e in problem.library.effects]
    text = torch.stack([sentence_vectors(s) for s in spec]).double()
    own = text[train, :TRAINED]
    mean = own.flatten(0, 1).mean(0)
    centres = F.normalize(F.normalize(own - mean, dim=-1).sum(1), dim=-1)
    among = inner[train][:, train]
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, dict[str, list[float]]] = {}
    for name, (effects, which) in problem.sets.items():
        to = torch.tensor(effects).repeat_interleave(len(which))
        x = text[torch.tensor(effects)][:, list(which)].flatten(0, 1)
        near = (x @ own.flatten(0, 1).mT).argmax(1) // TRAINED
        cosine = F.normalize(x - mean, dim=-1) @ centres.mT
        weights = {
            "mean LoRA": torch.full((len(x), len(train)), 1 / len(train), dtype=torch.float64),
            "random prompt": F.one_hot(torch.randint(len(train), (len(x),), generator=generator), len(train)).double(),
            "nearest prompt": F.one_hot(near, len(train)).double(),
            "softmax over centres, 0.05": torch.softmax(cosine / 0.05, 1),
            "softmax over centres, 0.1": torch.softmax(cosine / 0.1, 1),
            "best combination": torch.linalg.lstsq(among, inner[train][:, to]).solution.mT,
        }
        for row, w in weights.items():
            predicted, both = ((w @ among) * w).sum(1), (w * inner[to][:, train]).sum(1)
            target = inner[to, to]
            rows.setdefault(row, {})[name] = summary(predicted - 2 * both + target, predicted, target)
    return rows


def print_table(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Mean over seeds of error / cosine, with the range of the cosine where there are several."""
    sets = ("seen", "unseen", "heldout", "ood")
    print("| row | seeds | " + " | ".join(sets) + " |\n|---|---|" + "---|" * len(sets))
    for name, runs in rows.items():
        cells = []
        for key in sets:
            errors, cosines = zip(*(run[key] for run in runs), strict=True)
            spread = f" ({min(cosines):.2f}-{max(cosines):.2f})" if len(runs) > 1 else ""
            cells.append(f"{sum(errors) / len(runs):.2f} / {sum(cosines) / len(runs):.2f}{spread}")
        print(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, required=True, help="the world's library, with manifest.yaml")
    parser.add_argument("--base", type=Path, required=True, help="the world's base, a pipeline folder")
    parser.add_argument("--text", type=Path, required=True, help="where token states of the prompts are kept")
    parser.add_argument("--work", type=Path, required=True, help="prepared library, runs and rows.jsonl")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of: {'; '.join(ROWS)}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    problem = Problem(options.library, options.base, options.text, options.work)
    path = options.work / "rows.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for name in options.rows or ROWS:
        seeds, changes = ROWS[name]
        for seed in range(seeds):
            if not any(run["row"] == name and run["seed"] == seed for run in done):
                folder = options.work / "runs" / f"{list(ROWS).index(name):02}-{seed}"
                done.append({"row": name, "seed": seed, **train_row(problem, seed, changes, folder)})
                with path.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    print_table(
        {name: [run for run in done if run["row"] == name] for name in ROWS if name in {r["row"] for r in done}}
    )
    print("\ncontrols at the one site")
    print_table({name: [row] for name, row in controls(problem, gram([problem.record])).items()})
    print("\ncontrols at all sites")
    every = gram([problem.whole.site(key) for key in problem.whole.keys])
    print_table({name: [row] for name, row in controls(problem, every).items()})
    unit = every.diagonal().rsqrt()
    cosine = (every * unit * unit[:, None])[problem.train][:, problem.train]
    count = len(cosine)
    print(f"\nmean cosine of two training LoRAs: {float((cosine.sum() - count) / (count * count - count)):.3f}")


if __name__ == "__main__":
    main()
