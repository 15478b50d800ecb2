"""The training pass of the tiny judge computes what the model itself does."""

import pytest
import torch

from eval.judge.clip_store import tails
from eval.judge.fixed_shape import FixedShape, patches
from eval.judge.local_backend import model_inputs
from eval.judge.rubric import SYSTEM, effect_text
from eval.judge.tiny import TinyConfig, build_model, build_processor
from eval.judge.tiny_score import shown
from eval.judge.world_data import draw_examples
from eval.metrics.sampling import uniform_frames
from p2e.errors import ConfigError

TINY = TinyConfig(width=128, layers=3, vision_layers=2)


def test_logits_and_loss_are_the_models_own() -> None:
    processor = build_processor(TINY)
    model = build_model(TINY, processor.tokenizer).eval()
    examples = draw_examples(4, 2, wordings=2)
    ids, labels = tails(processor, examples, 192)
    fixed = FixedShape(model, model_inputs(processor, shown(examples[1:])), 192)
    places = uniform_frames(17)
    image, frames = torch.stack([e.image for e in examples]), torch.stack([e.clip[list(places)] for e in examples])
    tail, told = ids[:, 0].long(), labels[:, 0].long()
    with torch.no_grad():
        ours = fixed.hidden(patches(image, frames), tail)[:, :-1]
        loss = fixed(patches(image, frames), tail, told)
    expected = []
    for row, one in enumerate(examples):
        inputs = model_inputs(processor, shown([one]))
        answer = torch.tensor([processor.tokenizer(one.verdict.model_dump_json() + "<|im_end|>")["input_ids"]])
        length, count = inputs["input_ids"].shape[1], answer.shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(answer)], 1)
        with torch.no_grad():
            logits = model(**inputs).logits[0, length - 1 : -1].float()
        end = int((told[row] >= 0).nonzero()[-1]) + 1
        mine = model.lm_head(ours[row, end - count : end])
        assert torch.allclose(mine, logits, atol=2e-5)
        # All that follows the pictures is the template's.
        template = processor.tokenizer.decode(tail[row, :end])
        assert processor.tokenizer.decode(inputs["input_ids"][0]).endswith("<|vision_end|>" + template)
        assert processor.tokenizer.decode(inputs["input_ids"][0]).count(SYSTEM[:40]) == 1
        assert template.startswith(effect_text(one.prompt))
        expected.append((torch.nn.functional.cross_entropy(logits, answer[0], reduction="sum"), count))
    assert float(loss) == pytest.approx(float(sum(x for x, _ in expected)) / sum(n for _, n in expected), rel=1e-5)


def test_a_tail_that_is_too_long_is_said() -> None:
    processor = build_processor(TINY)
    with pytest.raises(ConfigError, match="too few"):
        tails(processor, draw_examples(1, 1), 16)
