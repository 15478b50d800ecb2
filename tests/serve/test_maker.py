"""The predictor's work on the world: prompts in as few passes as they allow, blends, and what cannot be made."""

from pathlib import Path

import pytest
import torch

from p2e.bases import open_base
from p2e.commands.options import shipped
from p2e.errors import ConfigError, OutputError
from p2e.hypernet.checkpoint import load_checkpoint
from p2e.lora.compose import blend
from p2e.lora.lora import Lora
from p2e.lora.read import read_lora
from p2e.predict import predict_loras
from p2e.text import encoder_for
from serve.artefacts import ArtefactStore
from serve.errors import ApiError
from serve.maker import LoraMaker
from serve.services import Made
from serve.settings import PredictorSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> LoraMaker:
    folder = tmp_path_factory.mktemp("maker")
    return LoraMaker(PredictorSettings(most_at_once=2, max_rank=10), ArtefactStore(str(folder)))


def asked(prompt: str, strength: float = 1.0) -> dict[str, object]:
    return {"prompt": prompt, "strength": strength}


def stored(maker: LoraMaker, name: str) -> Lora:
    return read_lora(maker.artefacts.url(name), maker.base)


def close(one: Lora, two: Lora, error: float) -> bool:
    for key, (a, b) in one.factors.items():
        x, y = b.float() @ a.float(), two.factors[key].b.float() @ two.factors[key].a.float()
        if (x - y).norm() > error * y.norm() + 1e-8:
            return False
    return one.factors.keys() == two.factors.keys()


def test_prompts_share_passes_and_come_out_as_alone(maker: LoraMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["the subject levitates", "everything turns red", "it melts", "a fisheye lens"]
    strengths = [1.0, 0.5, 1.0, 1.0]
    passes = []
    monkeypatch.setattr("serve.maker.predict_loras", lambda *a, **k: passes.append(len(a[2])) or predict_loras(*a, **k))
    names = [f"eff_{i}.safetensors" for i in range(4)]
    found = maker.make([(asked(p, s), name) for p, s, name in zip(prompts, strengths, names, strict=True)])
    assert passes == [2]  # two of strength 1 at once; one alone each is written while it is computed
    base, weights = open_base("world")
    assert weights is not None
    plain = load_checkpoint(shipped("world", "checkpoint"))
    for prompt, strength, name, made in zip(prompts, strengths, names, found, strict=True):
        assert isinstance(made, Made)
        lora = stored(maker, name)
        assert made.rank == max(f.rank for f in lora.factors.values()) and made.bytes > 0
        (alone,) = predict_loras(plain, weights, [prompt], encoder_for(base, weights.folder), strength=strength)
        assert close(lora, alone, 0.02)  # bfloat16
        assert lora.provenance.metadata["prompt"] == prompt and lora.provenance.metadata["strength"] == f"{strength:g}"


def test_blends_are_weighed_and_cut_to_the_slot(maker: LoraMaker) -> None:
    names = ["eff_a.safetensors", "eff_b.safetensors"]
    maker.make([(asked("the subject levitates", 1.0), names[0]), (asked("everything turns red"), names[1])])
    parts = [["a", names[0], 0.7], ["b", names[1], 0.4]]
    ((made),) = maker.make([({"blend": parts, "strength": 0.5}, "eff_c.safetensors")])
    assert isinstance(made, Made) and made.rank <= 10
    terms = [(stored(maker, names[0]), 0.35), (stored(maker, names[1]), 0.2)]
    assert close(stored(maker, "eff_c.safetensors"), blend(terms, made.rank).lora, 0.02)


def test_each_gets_its_own_answer(maker: LoraMaker) -> None:
    found = maker.make([
        (asked("it melts"), "eff_m.safetensors"), (asked("x" * 5000), "eff_n.safetensors"),
        ({"blend": [["a", "eff_none.safetensors", 1.0]], "strength": 1.0}, "eff_o.safetensors"),
    ])  # fmt: skip
    assert isinstance(found[0], Made)
    assert isinstance(found[1], ApiError) and found[1].status == 422 and found[1].param == "prompt"
    assert isinstance(found[2], ApiError) and found[2].status == 404
    assert {"eff_n.safetensors", "eff_o.safetensors"}.isdisjoint(maker.artefacts.names())


def test_a_full_disk_is_an_answer(maker: LoraMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("/secret: no space left")

    monkeypatch.setattr("serve.maker.predict_to_file", full)
    (found,) = maker.make([(asked("it melts"), "eff_p.safetensors")])
    assert isinstance(found, ApiError) and found.status == 507 and "secret" not in found.message


def test_a_large_strength_that_breaks_the_factors_is_an_answer(maker: LoraMaker) -> None:
    (found,) = maker.make([(asked("it melts", 1e39), "eff_q.safetensors")])
    assert isinstance(found, ApiError) and found.status == 422
    assert "eff_q.safetensors" not in maker.artefacts.names() and "/" not in found.message


def test_what_it_is_made_of_has_names(maker: LoraMaker) -> None:
    assert len(maker.identity.base) == len(maker.identity.checkpoint) == 64
    maker.warm_up()


def test_wrong_bases_are_refused(tmp_path: Path) -> None:
    store = ArtefactStore(str(tmp_path))
    for base, said in (("wan2.1-i2v-14b", "no weights"), ("wan2.2-i2v-a14b", "weights|two files")):
        with pytest.raises(ConfigError, match=said):
            LoraMaker(PredictorSettings(base=base), store)
    assert torch.get_default_dtype() == torch.float32
