"""The hypernetwork against an independent computation of equations 4 to 12, one site and one effect at a time."""

import math

import pytest
import torch
from tiny import tiny_base
from torch import Tensor

from p2e.bases.wan import WAN_BASES
from p2e.config import HypernetConfig, LossConfig
from p2e.hypernet.losses import combine, site_errors
from p2e.hypernet.model import Hypernet, Sites

BASE = tiny_base("toy")
TEXT, TOKENS = BASE.text_dim, 6


def network(**changes: object) -> Hypernet:
    values = {"width": 32, "layers": 2, "heads": 4, "latents": 5, "rank": 3, "ffn_ratio": 2.0}
    torch.manual_seed(0)
    model = Hypernet(HypernetConfig.parse(values | changes), BASE)
    with torch.no_grad():  # norms start at ones and heads small, which would hide mistakes
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter) * (parameter.std() if parameter.std() > 0 else 1)
    return model


def inputs(d_out: int, d_in: int, sites: int = 3, effects: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(effects, TOKENS, dtype=torch.bool)
    mask[0, 4:] = False
    return (
        torch.randn(sites, d_out, d_in, generator=generator) * 0.05,
        torch.tensor([0, 1, 1])[:sites],
        torch.tensor([3, 0, 5])[:sites],
        torch.randn(effects, TOKENS, TEXT, generator=generator),
        mask,
    )


class Naive:
    """The paper's equations in float64 with explicit loops, from the parameters by name."""

    def __init__(self, model: Hypernet) -> None:
        self.p = {name: value.detach().double() for name, value in model.named_parameters()}
        self.c = model.config

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * self.p[f"{name}.weight"]

    def attention(self, x: Tensor, context: Tensor, name: str) -> Tensor:
        """x [N, d], context [T, d] -> [N, d], head by head."""
        q, k, v = x @ self.w(name, "query"), context @ self.w(name, "key"), context @ self.w(name, "value")
        size, out = self.c.width // self.c.heads, []
        for h in range(self.c.heads):
            part = slice(h * size, (h + 1) * size)
            qh, kh = q[:, part], k[:, part]
            if self.c.qk_norm:
                qh, kh = self.norm(qh, f"{name}.query_norm"), self.norm(kh, f"{name}.key_norm")
            scores = (qh @ kh.T / math.sqrt(size)).exp()
            out.append(scores / scores.sum(-1, keepdim=True) @ v[:, part])
        return torch.cat(out, dim=-1) @ self.w(name, "out")

    def w(self, *name: str) -> Tensor:
        return self.p[".".join(name) + ".weight"].T

    def codes(self, length: int, width: int) -> Tensor:
        table = torch.zeros(length, width, dtype=torch.float64)
        for position in range(length):
            for i in range(width // 2):
                angle = position * 10_000 ** (-2 * i / width)
                table[position, i], table[position, width // 2 + i] = math.sin(angle), math.cos(angle)
        return table * math.sqrt(2)

    def __call__(self, w0: Tensor, block: int, module: int, text: Tensor) -> tuple[Tensor, Tensor]:
        """One site, one effect; text [T, d_text] holds real tokens only."""
        d_out, d_in, d = *w0.shape, self.c.width
        w0 = w0 / w0.square().mean().sqrt()
        rows = torch.stack([w0[i] @ self.w("tokens.p_b", str(d_in)) for i in range(d_out)])
        columns = torch.stack([w0[:, j] @ self.w("tokens.p_a", str(d_out)) for j in range(d_in)])
        scale = self.c.position_scale * math.sqrt(2)
        rows[:, : d // 2] += scale * self.codes(d_out, d // 2)
        columns[:, d // 2 :] += scale * self.codes(d_in, d // 2)
        site = self.p["block_embedding.weight"][block] + self.p["module_embedding.weight"][module]
        x = self.norm(torch.cat([rows, columns]) + site, "token_norm")
        z = self.p["latents"] + self.attention(self.p["latents"], x, "compress") + site
        t = self.norm(text @ self.w("text"), "text_norm")
        for i in range(self.c.layers):
            name = f"blocks.{i}"
            y = self.norm(z, f"{name}.self_norm")
            z = z + self.attention(y, y, f"{name}.self_attention")
            z = z + self.attention(self.norm(z, f"{name}.text_norm"), t, f"{name}.text_attention")
            gate, up = (self.norm(z, f"{name}.ffn_norm") @ self.w(name, "ffn.up")).chunk(2, dim=-1)
            z = z + (gate * torch.sigmoid(gate) * up) @ self.w(name, "ffn.down")
        decompressed = self.attention(x, self.norm(z, "latent_norm"), "decompress")
        if self.c.residual:
            decompressed = decompressed + x
        return (decompressed[d_out:] @ self.w("head_a")).T, decompressed[:d_out] @ self.w("head_b")


@pytest.mark.parametrize("changes", [{}, {"residual": False}, {"qk_norm": False}, {"position_scale": 0.0}])
@pytest.mark.parametrize("shape", [(32, 32), (64, 32), (32, 64)])
def test_network_computes_the_equations(shape: tuple[int, int], changes: dict[str, object]) -> None:
    model = network(**changes)
    w0, block, module, text, mask = inputs(*shape)
    a, b = model.double()(w0.double(), block, module, text.double(), mask)
    naive = Naive(model)
    assert a.shape == (3, 2, 3, shape[1]) and b.shape == (3, 2, shape[0], 3)
    for s in range(3):
        for e in range(2):
            known_a, known_b = naive(w0[s].double(), int(block[s]), int(module[s]), text[e][mask[e]].double())
            # position codes are computed in float32
            torch.testing.assert_close(a[s, e], known_a, rtol=1e-4, atol=2e-5)
            torch.testing.assert_close(b[s, e], known_b, rtol=1e-4, atol=2e-5)


def test_shapes_go_through_the_backbone_together_and_come_out_as_alone() -> None:
    model = network()
    groups = [inputs(32, 32), inputs(64, 32, sites=1), inputs(32, 64, sites=2)]
    text, mask = groups[0][3:]
    together = model.predict_sites([Sites(*group[:3]) for group in groups], text, mask)
    for group, (a, b) in zip(groups, together, strict=True):
        alone_a, alone_b = model(*group[:3], text, mask)
        torch.testing.assert_close(a, alone_a)
        torch.testing.assert_close(b, alone_b)


def test_sites_do_not_see_each_other() -> None:
    model = network()
    w0, block, module, text, mask = inputs(32, 32)
    a, b = model(w0, block, module, text, mask)
    order = torch.tensor([2, 0, 1])
    a_moved, b_moved = model(w0[order], block[order], module[order], text, mask)
    torch.testing.assert_close(a_moved, a[order])
    torch.testing.assert_close(b_moved, b[order])
    w0[2] = torch.randn(32, 32)
    assert torch.allclose(model(w0, block, module, text, mask)[0][:2], a[:2], atol=1e-6)


def test_across_sites_they_do_whatever_their_order() -> None:
    model = network(across_sites=True)
    w0, block, module, text, mask = inputs(32, 32)
    a, _ = model(w0, block, module, text, mask)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(model(w0[order], block[order], module[order], text, mask)[0], a[order])
    w0[2] = torch.randn(32, 32)
    assert not torch.allclose(model(w0, block, module, text, mask)[0][:2], a[:2], atol=1e-3)


def test_padding_is_never_attended_to() -> None:
    model = network()
    w0, block, module, text, mask = inputs(32, 32)
    a, _ = model(w0, block, module, text, mask)
    noisy = text + torch.randn_like(text) * ~mask[..., None]
    torch.testing.assert_close(model(w0, block, module, noisy, mask)[0], a)
    assert not torch.allclose(model(w0, block, module, noisy, torch.ones_like(mask))[0], a, atol=1e-3)


def test_scale_of_w0_does_not_matter_and_its_content_does() -> None:
    model = network()
    w0, *rest = inputs(32, 32)
    a, _ = model(w0, *rest)
    torch.testing.assert_close(model(w0 * 1000, *rest)[0], a)
    assert not torch.allclose(model(w0.mT.contiguous(), *rest)[0], a, atol=1e-3)


def test_bfloat16_parameters_predict_nearly_the_same() -> None:
    model = network()
    w0, block, module, text, mask = inputs(32, 32)
    a, _ = model(w0, block, module, text, mask)
    low, _ = model.bfloat16()(w0.bfloat16(), block, module, text.bfloat16(), mask)
    assert low.dtype == torch.bfloat16
    assert float(((low.float() - a).norm() / a.norm()).detach()) < 0.05


def test_at_the_start_the_update_is_small_and_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = Hypernet(HypernetConfig.parse({"width": 32, "layers": 2, "heads": 4, "latents": 5, "rank": 3}), BASE)
    w0, block, module, text, mask = inputs(32, 32)
    a, b = torch.randn(3, 2, 3, 32), torch.randn(3, 2, 32, 3)
    a_hat, b_hat = model(w0, block, module, text, mask)
    errors = site_errors(a_hat, b_hat, a, b, 1e-6)
    losses = combine([errors], [torch.ones(3, 2)], LossConfig.parse({"update": 0.5}))
    losses.loss.backward()
    assert float(losses.norm_ratio) < 0.1
    idle = {name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)}
    assert idle == {"tokens.p_b.64.weight", "tokens.p_a.64.weight"}  # widths of other shapes


def test_the_paper_setting_has_1_3_billion_parameters() -> None:
    with torch.device("meta"):
        model = Hypernet(HypernetConfig(), WAN_BASES["wan2.1-i2v-14b"])
    parts = {name: sum(p.numel() for p in child.parameters()) / 1e6 for name, child in model.named_children()}
    total = sum(p.numel() for p in model.parameters())
    assert 1.2e9 < total < 1.35e9
    assert round(total / 1e9, 3) == 1.295
    assert {name: round(parts[name], 1) for name in ("tokens", "compress", "text", "blocks", "decompress")} == {
        "tokens": 77.6, "compress": 16.8, "text": 8.4, "blocks": 1174.5, "decompress": 16.8,
    }  # fmt: skip
    assert len(model.blocks) == 14 and model.latents.shape == (256, 2048)
