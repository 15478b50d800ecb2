"""Every stage that makes the world takes its steps at toy size, in order, and the next one reads what it wrote."""

import json
from pathlib import Path

import pytest
import torch

from p2e.errors import ConfigError, InputError
from p2e.files import sha256
from p2e.lora.library import Manifest
from p2e.lora.lora import Lora
from p2e.text import TextStates
from p2e.world import makers, states, train_vae
from p2e.world.columns import Column, ColumnLoras, World
from p2e.world.config import WorldLibraryConfig
from p2e.world.effects import EFFECTS
from p2e.world.measurement import Measurement
from p2e.world.parallel import Worker, average_gradients, join
from p2e.world.pause import Paused
from p2e.world.pipeline import MAIN_COLUMNS
from p2e.world.rebuild import run, status
from p2e.world.schedule import Schedule
from p2e.world.states import kept_states
from p2e.world.vae import build_vae

pytestmark = pytest.mark.slow

SMALL = [
    "vae.steps=2", "vae.batch=1", "vae.pool=2", "vae.measured=1",
    "base.steps=2", "base.batch=1", "base.pool=2", "base.measured=1",
    "library.clips=1", "library.effects=2", "library.adapt.steps=2", "library.adapt.batch=1",
    "measure.scenes=1", "measure.effects=2", "measure.steps=1", "measure.keep=[\"yellow_mood\"]",
    "moments.clips=1", "hypernet.steps=2", "hypernet.compile=false", "hypernet.cuda_graph=false",
    "hypernet.precision=\"float32\"", "hypernet.sites_per_step=3", "hypernet.effects_per_step=2",
    "hypernet.hypernet.width=32", "hypernet.hypernet.heads=8", "hypernet.hypernet.layers=1",
    "finetune.steps=2", "finetune.clips=2", "finetune.clips_per_effect=1",
    "ablations.steps=2", "ablations.arms=[\"no_weights\", \"hyperdreambooth\", \"ensemble\"]",
    'ablations.changes={"compile": false, "cuda_graph": false, "precision": "float32", "sites_per_step": 3, '
    '"effects_per_step": 2, "hypernet": {"width": 32, "heads": 8, "layers": 1}}',
    "main_table.scenes=1", "main_table.effects=2", "main_table.steps=1",
    f"main_table.columns={json.dumps([c for c in MAIN_COLUMNS if ':5' not in c and ':10' not in c])}",
    "ablation_table.scenes=1", "ablation_table.effects=2", "ablation_table.steps=1",
    "ablation_table.columns=[\"base\", \"lora\", \"zero:ablations/no_weights\", \"zero:ablations/ensemble\"]",
]  # fmt: skip


class RandomEncoder:
    """Stands in for MiniLM, whose states of two thousand captions take minutes here."""

    width = 384

    def encode(self, prompts):
        generator = torch.Generator().manual_seed(0)
        mask = torch.arange(8).expand(len(prompts), 8) < 6
        return TextStates(torch.randn(len(prompts), 8, 384, generator=generator) * mask[..., None], mask)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "encoder_for", lambda base: RandomEncoder())
        patch.setattr(train_vae, "build_vae", lambda: build_vae(base_dim=8, decoder_base_dim=8))
        run([], out, SMALL)
    return out


def test_the_base_is_a_pipeline_folder(world: Path):
    from p2e.render.pipeline import Renderer

    renderer = Renderer.open(world / "base")
    assert renderer.base.name == "world"
    assert json.loads((world / "base" / "vae" / "report.json").read_text())["steps"] == 2


def test_the_library_lists_what_was_trained(world: Path):
    manifest = Manifest.load(world / "library" / "manifest.yaml")
    assert [entry.effect for entry in manifest.entries] == [spec.name for spec in EFFECTS[:2]]
    assert not set(manifest.entries[0].prompts) & set(EFFECTS[0].unseen_prompts)


def test_every_column_is_measured(world: Path):
    found = Measurement.load(world / "main_table" / "fidelity.json")
    assert list(found.effects) == [spec.name for spec in EFFECTS[:2]]
    columns = {
        "still", "cap", "base", "lora", "hdb", "zero", "zero:second_stage", "random", "mean", "nearest", "softmax"
    }  # fmt: skip
    for row in found.effects.values():
        assert set(row.scores) == set(row.seeds) == columns
        assert all(len(scores) == 1 and scores[0] <= 1 for scores in row.scores.values())
        assert row.scores["still"] == [0.0] and row.scores["base"] != row.scores["lora"]


def test_strips_of_frames_are_kept(world: Path):
    strips = {path.name for path in (world / "measure" / "clips" / EFFECTS[0].name).iterdir()}
    assert strips == {"truth.png", "base.png", "lora.png"}
    assert [path.name for path in (world / "measure" / "clips").iterdir()] == [EFFECTS[0].name]


def test_trained_columns_begin_where_they_say(world: Path):
    """Fine-tuning at a rate of next to nothing leaves the prediction as it is, and a LoRA from scratch no update."""
    device = torch.device("cpu")
    opened = World(
        world, makers.WORLD, makers.open_transformer(world, device), makers.open_vae(world, device), None,
        makers.effect_states(world), join(),
    )  # fmt: skip
    specs = EFFECTS[:2]

    def made(column: str, rate: float) -> Lora:
        recipe = WorldLibraryConfig().adapt.model_copy(
            update={"batch": 1, "learning_rate": rate, "precision": "float32"}
        )
        loras = ColumnLoras(opened, WorldLibraryConfig(clips=1, adapt=recipe))
        return loras.of(Column.parse(column), specs, specs[1:], -1)[0]

    def difference(one: Lora, two: Lora) -> float:
        return max(float((one.factors[key].delta() - f.delta()).abs().max()) for key, f in two.factors.items())

    predicted = made("zero", 0.1)
    size = max(float(f.delta().abs().max()) for f in predicted.factors.values())
    assert size > 0 and difference(made("init:1", 1e-30), predicted) < 1e-4 * size
    assert difference(made("init:1", 1e-2), predicted) > 1e-4
    assert max(float(f.delta().abs().max()) for f in made("lora:1", 1e-30).factors.values()) < 1e-20


def test_nothing_is_made_twice(world: Path):
    assert {verdict.state for _, verdict in status(world, SMALL)} == {"done"}
    changed = dict(status(world, [*SMALL, "prepare.rank=2"]))
    assert [name for name, verdict in changed.items() if verdict.state != "done"] == [
        "prepare", "hypernet", "finetune", "main_table"
    ]  # fmt: skip
    run([], world, SMALL)  # without an encoder of its own it would take minutes
    assert not (world / ".work").exists()


def test_the_hypernetwork_goes_on_to_the_bit(world: Path):
    settings = [*SMALL, "hypernet.steps=3", "hypernet.log_every=1"]
    run(["hypernet"], world, settings)
    whole = sha256(world / "checkpoint" / "model.safetensors")
    for _ in range(2):
        with pytest.raises(Paused, match="hypernet: paused after"):
            run(["hypernet"], world, settings, force=["hypernet"], pause_after=0)
    run(["hypernet"], world, settings, force=["hypernet"], pause_after=0)
    assert sha256(world / "checkpoint" / "model.safetensors") == whole
    history = json.loads((world / "checkpoint" / "history.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [1, 2, 3]
    assert not (world / "checkpoint" / "training.safetensors").exists()


def test_an_unknown_setting_is_refused(world: Path):
    with pytest.raises(ConfigError, match="stepz"):
        run(["vae"], world, ["vae.stepz=3"])


def test_states_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []

    class Counting(RandomEncoder):
        def encode(self, prompts):
            calls.append(len(prompts))
            return super().encode(prompts)

    monkeypatch.setattr(states, "encoder_for", lambda base: Counting())
    first = kept_states(["one", "two"], tmp_path)
    again = kept_states(["one", "two"], tmp_path)
    assert calls == [2] and torch.equal(first.states, again.states) and torch.equal(first.mask, again.mask)
    kept_states(["one", "three"], tmp_path)
    assert calls == [2, 2]


def test_a_group_of_one_needs_no_messages():
    worker = join()
    assert (worker.rank, worker.size) == (0, 1)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    average_gradients([parameter], worker)
    assert parameter.grad.tolist() == [1.0, 2.0]


def test_the_schedule_warms_up_decays_and_ends():
    schedule = Schedule(100, 10, None, Worker(0, 1, torch.device("cpu")))
    scales = [schedule.scale(step) for step in range(101)]
    assert scales[0] == pytest.approx(0.1) and scales[100] is None
    assert scales[9] == pytest.approx(0.98, abs=0.02)
    assert scales[99] == pytest.approx(0.02, abs=0.01)
    ended = Schedule(100, 10, 1e-9, Worker(0, 1, torch.device("cpu")))
    assert ended.scale(0) is None


@pytest.mark.parametrize(
    ("stages", "settings", "said"),
    [
        (["bass"], [], "the stages are"),
        (["vae"], ["steps=2"], "STAGE.KEY=JSON"),
        (["vae"], ["vae.steps=two"], "not JSON"),
        (["hypernet"], ["hypernet.steps=2", "hypernet.steps.more=2"], "keep one"),
        (["base"], [], "run the stage captions first"),
        (["hypernet"], [], "run the stage text first"),
    ],
)
def test_a_wrong_stage_or_setting_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[str], settings: list[str], said: str
):
    monkeypatch.setattr(states, "encoder_for", lambda base: RandomEncoder())
    with pytest.raises(InputError, match=said):
        run(stages, tmp_path, settings)
