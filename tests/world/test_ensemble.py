"""An ensemble that was trained member by member."""

import json
from pathlib import Path

import torch
from tiny_training import TinyRun

from p2e.hypernet.checkpoint import load_checkpoint
from p2e.hypernet.model import Sites
from p2e.training.loop import Trainer
from p2e.world.ensemble import join_members, member_config, member_library


def test_members_become_one_checkpoint(tmp_path: Path) -> None:
    tiny = TinyRun(tmp_path)
    config, blocks = tiny.config("whole", steps=3, log_every=1, sites_per_step=4, effects_per_step=2), range(2)
    assert tiny.base.num_blocks == len(blocks)
    folders, parts = [], []
    for block in blocks:
        library = member_library(tiny.library, tiny.base, block)
        assert {tiny.base.by_key[key].block for key in library.keys} == {block}
        parts += library.keys
        run = member_config(config, tiny.base, tiny.library, block).model_copy(
            update={"output": str(tmp_path / f"member{block}")}
        )
        assert run.sites_per_step == len(library.keys)
        trainer = Trainer(run, tiny.base, tiny.weights, library, tiny.encoder)
        folders.append(trainer.run())
        (folders[-1] / "history.json").write_text(json.dumps({"history": trainer.history}))
    assert sorted(parts) == sorted(tiny.library.keys)
    joined = load_checkpoint(join_members(folders, tiny.base, tiny.library, tmp_path / "joined"), base=tiny.base)
    assert joined.config.ensemble and joined.scales.keys() == set(tiny.library.keys)
    history = json.loads((tmp_path / "joined" / "history.json").read_text())["history"]
    assert [row["step"] for row in history] == [1, 2, 3]
    states = tiny.encoder.encode(["melt it", "and fly"])
    text = joined.model.text_input(states)
    for block, folder in zip(blocks, folders, strict=True):
        member = load_checkpoint(folder, base=tiny.base)
        sites = [site for site in tiny.base.shapes[64, 32] if site.block == block]
        w0 = torch.stack([tiny.weights.read(site) for site in sites])
        modules = torch.tensor([tiny.base.modules.index(site.module) for site in sites])
        index = torch.full((len(sites),), block)
        group = [Sites(joined.model.prepare(w0, index, modules), index, modules)]
        ours = joined.model.predict_sites(group, text.states, text.mask)[0]
        theirs = member.model.predict_sites(group, text.states, text.mask)[0]
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
