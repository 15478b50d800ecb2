"""What the network reads of a prompt: tokens untouched, sentences whitened and drawn to their effects, kept with it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import TEXT_DIM, TinyRun
from torch import Tensor

from p2e.config import AugmentConfig, HypernetConfig, TextConfig, TrainConfig
from p2e.errors import ConfigError, FormatError, InputError
from p2e.files import SafetensorsFile, write_safetensors
from p2e.hypernet.checkpoint import load_checkpoint
from p2e.hypernet.text import TextInput, sentence_vectors, whitening
from p2e.lora.formats import read_lora
from p2e.predict import predict_loras, predict_to_file
from p2e.text import TextStates

ANCHORED = {"form": "sentence", "whiten": "effects", "anchors": 6, "temperature": 0.05}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return TinyRun(tmp_path_factory.mktemp("tiny"))


def text_of(vectors: Tensor, tokens: int = 3) -> TextStates:
    """States whose mean over the real tokens, all but the last, is `vectors`."""
    states = vectors[:, None].repeat(1, tokens, 1)
    states[:, -1] = 0
    mask = torch.ones(len(vectors), tokens, dtype=torch.bool)
    mask[:, -1] = False
    return TextStates(states, mask)


def wordings(effects: int = 5, prompts: int = 4, width: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors about a centre an effect, scattered ten times as far along the first axis as along the others."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(effects, 1, width, generator=generator)
    around = torch.randn(effects, prompts, width, generator=generator) * 0.1
    around[..., 0] *= 10
    return (centres + around).flatten(0, 1), torch.arange(effects).repeat_interleave(prompts)


def test_tokens_are_left_alone() -> None:
    module, text = TextInput(TextConfig(), 16), text_of(wordings()[0])
    module.fit(text, wordings()[1])
    assert module(text) is text and not module.state_dict()


def test_a_sentence_is_one_token_that_padding_does_not_change() -> None:
    module, text = TextInput(TextConfig(form="sentence"), 16), text_of(wordings()[0])
    module.fit(text, wordings()[1])
    found = module(text)
    assert found.states.shape == (20, 1, 16) and found.mask.shape == (20, 1) and bool(found.mask.all())
    torch.testing.assert_close(found.states.square().mean(-1), torch.ones(20, 1))
    text.states[:, -1] = 7.0
    torch.testing.assert_close(module(text).states, found.states)
    torch.testing.assert_close(sentence_vectors(text).norm(dim=1), torch.ones(20))


def test_whitening_by_effects_makes_paraphrases_scatter_alike_in_the_directions_it_keeps() -> None:
    x, of = wordings(effects=40, prompts=30, width=8)
    mean, matrix = whitening(x, of, TextConfig(form="sentence", whiten="effects", shrink=1e-9))
    torch.testing.assert_close(mean, x.mean(0))
    y = ((x - mean) @ matrix).view(40, 30, 8)
    within = (y - y.mean(1, keepdim=True)).flatten(0, 1)
    torch.testing.assert_close(within.mT @ within / len(within), torch.eye(8), atol=1e-3, rtol=0)


def test_whitening_by_prompts_makes_prompts_scatter_alike() -> None:
    x, of = wordings(effects=40, prompts=30, width=8)
    mean, matrix = whitening(x, of, TextConfig(form="sentence", whiten="prompts", shrink=1e-9))
    y = (x - mean) @ matrix
    torch.testing.assert_close(y.mT @ y / len(y), torch.eye(8), atol=1e-3, rtol=0)


def test_few_effects_leave_few_directions() -> None:
    x, of = wordings(effects=5)
    _, matrix = whitening(x, of, TextConfig(form="sentence", whiten="effects"))
    assert int(torch.linalg.matrix_rank(matrix, rtol=1e-4)) == 4


@pytest.mark.parametrize("whiten", ["centre", "effects"])
def test_anchors_draw_a_new_wording_to_its_effect(whiten: str) -> None:
    x, of = wordings(prompts=5)
    x[:, 0] *= 0.1
    known = torch.arange(len(x)) % 5 > 0
    module = TextInput(TextConfig.parse(ANCHORED | {"whiten": whiten, "anchors": 5}), 16)
    module.fit(text_of(x[known]), of[known])
    read = module(text_of(x)).states[:, 0]
    spread = (read[~known] - read[known].view(5, 4, 16).mean(1)).square().mean(1)
    plain = TextInput(TextConfig(form="sentence"), 16)(text_of(x)).states[:, 0]
    before = (plain[~known] - plain[known].view(5, 4, 16).mean(1)).square().mean(1)
    assert bool((spread < 0.2 * before).all())


def test_the_order_of_effects_does_not_matter_to_what_is_read() -> None:
    x, of = wordings()
    config = TextConfig.parse(ANCHORED | {"anchors": 5})
    one, other = TextInput(config, 16), TextInput(config, 16)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    one.fit(text_of(x), of)
    other.fit(text_of(x[order]), 9 - of[order])
    torch.testing.assert_close(one(text_of(x)).states, other(text_of(x)).states, atol=1e-3, rtol=1e-3)


def test_what_cannot_be_fitted_is_refused() -> None:
    x, of = wordings()
    module = TextInput(TextConfig.parse(ANCHORED), 16)
    with pytest.raises(ConfigError, match=r"5 training effects; set hypernet.text.anchors: 5"):
        module.fit(text_of(x), of)
    with pytest.raises(InputError, match="needs two training effects"):
        whitening(x[:4], of[:4], TextConfig(form="sentence", whiten="prompts"))
    with pytest.raises(InputError, match="needs paraphrases"):
        whitening(x[::4], of[::4], TextConfig(form="sentence", whiten="effects"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hypernet": {"text": {"whiten": "effects"}}}, "set form: sentence"),
        ({"hypernet": {"text": {"anchors": 3}}}, "set form: sentence"),
        ({"augment": {"mix": 1.0}}, "set hypernet.text.form: sentence"),
        ({"augment": {"blend": 0.5}}, "set hypernet.text.form: sentence"),
        ({"hypernet": {"text": {"form": "sentence"}}, "augment": {"token_dropout": 0.1}}, "cannot be dropped"),
    ],
)
def test_contradictions_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.parse({"library": "l", "output": "o", **changes})
    assert not AugmentConfig().active


@pytest.mark.parametrize("changes", [{}, {"ensemble": True}, {"architecture": "hyperdreambooth"}], ids=str)
def test_a_checkpoint_reads_prompts_as_training_did(tiny: TinyRun, changes: dict[str, Any], tmp_path: Path) -> None:
    trainer = tiny.trainer(
        str(tmp_path / "run"), hypernet=changes | {"text": ANCHORED}, steps=2, ema=0.9,
        checkpoint_precision="bfloat16",
    )  # fmt: skip
    assert trainer.source.text.shape == (16, 1, TEXT_DIM)
    folder = trainer.run()
    found = load_checkpoint(folder, base=tiny.base)
    prompts = [prompt for effect in tiny.library.effects for prompt in effect.prompts]
    read = found.model.text_input(tiny.encoder.encode(prompts))
    assert torch.equal(read.states, trainer.source.text)  # not rounded, although the weights are
    assert found.config.text == TextConfig.parse(ANCHORED)
    loras = predict_loras(found, tiny.weights, prompts[:2], tiny.encoder)
    alone = predict_loras(found, tiny.weights, prompts[1:2], tiny.encoder)[0]
    key = next(iter(alone.factors))
    torch.testing.assert_close(loras[1].factors[key].a, alone.factors[key].a)


def test_a_checkpoint_without_its_map_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    folder = tiny.trainer(str(tmp_path / "run"), hypernet={"text": ANCHORED}, steps=1).run()
    path = folder / "model.safetensors"
    with SafetensorsFile(path) as file:
        tensors, metadata = file.read_all(), file.metadata
    write_safetensors(path, {k: v for k, v in tensors.items() if k != "text_input.centres"}, metadata)
    with pytest.raises(FormatError, match=r"text_input.centres is None"):
        load_checkpoint(folder, base=tiny.base)


def test_a_checkpoint_of_before_reads_tokens(tiny: TinyRun, tmp_path: Path) -> None:
    folder = tiny.trainer(str(tmp_path / "run"), steps=1).run()
    settings = json.loads((folder / "config.json").read_text())
    assert settings["hypernet"].pop("text")["form"] == "tokens"
    with SafetensorsFile(folder / "model.safetensors") as file:
        assert not any(name.startswith("text_input") for name in file.specs)
    assert HypernetConfig.parse(settings["hypernet"]) == load_checkpoint(folder, base=tiny.base).config


def test_a_sentence_that_asks_for_two_effects_is_taken_apart() -> None:
    vectors, of = wordings(6, 9, 32)
    module = TextInput(TextConfig.parse(ANCHORED | {"temperature": 0.02, "components": 2}), 32)
    module.fit(text_of(vectors), of)
    low, high = module.chance[:, 0].tolist()
    assert 0 <= low < high < 1
    centres = torch.stack([vectors[of == e].mean(0) for e in range(6)])
    single = module(text_of(centres)).states[:, 0]
    found = module.components(text_of(centres[0:1] + centres[3:4]))
    assert found.text.states.shape == (2, 1, 32) and found.text.mask.shape == (2, 1)
    cosine = torch.nn.functional.cosine_similarity(found.text.states[:, 0][:, None], single[None], dim=-1)
    assert set(cosine.argmax(1).tolist()) == {0, 3} and cosine.amax(1).min() > 0.95
    assert found.strength.tolist() == [[1, 1]]
    # A prompt of one effect asks for it alone, and most of those that were trained on do.
    alone = module.components(text_of(centres))
    torch.testing.assert_close(alone.text.states[::2, 0], single)
    assert (module.components(text_of(vectors)).strength[:, 1] == 0).float().mean() >= 0.5
    # With one component there is nothing to add to what the network reads.
    one = TextInput(TextConfig.parse(ANCHORED | {"temperature": 0.02}), 32)
    one.fit(text_of(vectors), of)
    plain = one.components(text_of(vectors))
    torch.testing.assert_close(plain.text.states, module(text_of(vectors)).states)
    assert plain.strength.tolist() == [[1]] * len(vectors)


def test_components_need_anchors() -> None:
    with pytest.raises(ConfigError, match="set anchors, or components: 1"):
        TextConfig.parse({"form": "sentence", "components": 2})


def test_a_prompt_of_two_effects_gets_the_sum_of_their_updates(tiny: TinyRun, tmp_path: Path) -> None:
    text = ANCHORED | {"components": 2}
    folder = tiny.trainer(str(tmp_path / "run"), hypernet={"text": text}, steps=2).run()
    found = load_checkpoint(folder, base=tiny.base)
    prompts = [prompt for effect in tiny.library.effects for prompt in effect.prompts][:3]
    module = found.model.text_input
    key, rank = tiny.base.sites[0].key, found.config.rank

    def updates(low: float, high: float) -> list[tuple[Tensor, int]]:
        module.chance.copy_(torch.tensor([[low], [high]]))
        loras = predict_loras(found, tiny.weights, prompts, tiny.encoder)
        return [(lora.factors[key].b @ lora.factors[key].a, lora.rank) for lora in loras]

    alone, both, half = updates(5, 6), updates(-6, -5), updates(-100, 100)
    assert [r for _, r in alone] == [rank] * 3 and [r for _, r in both] == [2 * rank] * 3
    predict_to_file(found, tiny.weights, prompts[0], tiny.encoder, tmp_path / "x.safetensors", dtype=torch.float32)
    written = read_lora(tmp_path / "x.safetensors", tiny.base).factors[key]
    torch.testing.assert_close(written.b @ written.a, half[0][0], rtol=1e-3, atol=1e-6)
    asked = module.components(tiny.encoder.encode(prompts))
    for row in range(3):
        share = asked.strength[row, 1].item()
        assert 0.4 < share < 0.6
        second = both[row][0] - alone[row][0]
        assert second.norm() > 0
        torch.testing.assert_close(half[row][0], alone[row][0] + share * second, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("components", [1, 2])
def test_a_prompt_that_is_like_no_effect_stands_between_several(components: int) -> None:
    vectors, of = wordings(6, 9, 32)
    sharp = ANCHORED | {"temperature": 0.02, "components": components}
    plain, hedged = (TextInput(TextConfig.parse(sharp | {"hedge": hedge}), 32) for hedge in (0, 4))
    for module in (plain, hedged):
        module.fit(text_of(vectors), of)
    centres = torch.stack([vectors[of == e].mean(0) for e in range(6)])

    def first(module: TextInput, prompt: Tensor) -> Tensor:
        return module.components(text_of(prompt)).text.states[::components, 0]

    # What is as near to its anchor as training prompts are is read as before, and so is all that training reads.
    torch.testing.assert_close(first(hedged, centres), first(plain, centres))
    torch.testing.assert_close(hedged(text_of(vectors)).states, plain(text_of(vectors)).states)
    strange = -centres[:1] - centres[1:2] + 0.3 * centres[2:3]
    nearest = torch.nn.functional.cosine_similarity(first(plain, strange), first(plain, centres), dim=-1).amax()
    spread = torch.nn.functional.cosine_similarity(first(hedged, strange), first(plain, centres), dim=-1).amax()
    assert 0 < hedged.familiar.item() < 1 and spread < nearest - 0.02


def test_hedging_needs_anchors() -> None:
    with pytest.raises(ConfigError, match="set anchors, or hedge: 0"):
        TextConfig.parse({"form": "sentence", "hedge": 4})
