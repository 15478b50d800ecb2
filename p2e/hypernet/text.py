"""What a hypernetwork reads of a prompt: the encoder's token states as they are, or one sentence vector of them.

Token states name a wording more sharply than what it describes, and a network that is trained on a handful of
paraphrases an effect learns the wordings by heart. The sentence vector leaves less to learn by heart: the mean of the
token states, scaled to length 1 as sentence encoders of this kind were trained to be used, then centred and whitened.
"effects" whitens by the scatter of paraphrases about the mean of their effect (the within-class scatter of Fisher's
linear discriminant, with shrinkage) and keeps the directions in which the effects' means differ; "prompts" whitens by
the principal components of all prompts. With anchors, the vector is then replaced by the mean of the training effects'
centres, weighed by a softmax of its cosine to each: a new wording of a known effect lands where the old ones lie, and
a new effect between those that it resembles. All of this is fitted once, to the prompts that are trained on, and then
fixed.

A sharp softmax hears one effect of a prompt that asks for two ("up it goes, and the whole picture becomes red"). With
`components` K, the sentence is taken apart by orthogonal matching pursuit (Pati et al., 1993), a softmax in place of
each choice:

    a_k = normalise(softmax(cos(r_k-1, centres) / temperature) @ centres)      r_0 = v
    c = least squares of v on a_1 .. a_k,   r_k = v - sum_j c_j a_j

In training the network reads a_1 alone, as every training prompt asks for one effect. A prediction is the sum of the
updates for a_1 .. a_K, each at its strength

    s_1 = 1,   s_k = (c_k / c_1 - m_k) / (h_k - m_k) within 0..1

where m_k and h_k are the third quartile and the ninth decile of c_k / c_1 over the training prompts: up to the one a
further component is chance, and from the other on it is meant.

A prompt that resembles no training effect has a nearest one all the same, and the sharp softmax would have the
prediction be sure of it. With `hedge` H, a_1 of a prediction is read at the temperature

    temperature * max(1, familiar / max cos(v, centres))^H

where `familiar` is the 5% quantile of that maximum over the training prompts: the stranger the prompt, the more
effects it stands between.

Shapes: N prompts, F effects, T tokens, D width of the token states, K components.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2e.config import TextConfig
from p2e.errors import ConfigError, InputError
from p2e.text import TextStates

__all__ = ["Components", "TextInput", "sentence_vectors", "whitening"]

CHANCE, MEANT = 0.75, 0.9  # quantiles of a further component's share over prompts of one effect
FAMILIAR = 0.05  # quantile, over the training prompts, of the cosine to the nearest anchor
LEAST_COSINE = 0.05  # a prompt that is nearer to no anchor is as strange as can be
EXPLAINED = 1e-3  # length of what is left of a unit vector
RIDGE = 1e-4  # on the Gram matrix of components, of which two may nearly agree
RANK_TOLERANCE = 1e-6  # of the largest eigenvalue; below it a direction is rounding


def sentence_vectors(text: TextStates) -> Tensor:
    """Mean of the real tokens of each prompt, scaled to length 1: [N, D] float32."""
    mask = text.mask[..., None].float()
    return F.normalize((text.states.float() * mask).sum(1) / mask.sum(1).clamp(min=1), dim=-1)


def whitening(vectors: Tensor, effects: Tensor, config: TextConfig) -> tuple[Tensor, Tensor]:
    """What `config.whiten` names, fitted to the training prompts and computed in float64.

    Args:
        vectors: sentence vectors of the prompts, [N, D].
        effects: the effect that each describes, [N], any integers.

    Returns:
        mean [D] and matrix [D, D], float32: a vector x becomes (x - mean) @ matrix.

    Raises:
        InputError: one effect, or, to whiten by effects, no effect with two prompts.
    """
    x = vectors.double().cpu()
    mean, eye = x.mean(0), torch.eye(x.shape[1], dtype=torch.float64)
    names, of = effects.cpu().unique(return_inverse=True)
    if config.whiten in ("none", "centre"):
        return (mean if config.whiten == "centre" else torch.zeros_like(mean)).float(), eye.float()
    if len(names) < 2:
        raise InputError(f"text.whiten: {config.whiten} needs two training effects; set it to none")
    count = torch.zeros(len(names), dtype=torch.float64).index_add(0, of, torch.ones(len(of), dtype=torch.float64))
    centres = torch.zeros(len(names), x.shape[1], dtype=torch.float64).index_add(0, of, x) / count[:, None]
    if config.whiten == "prompts":
        scatter, kept = (x - mean).mT @ (x - mean) / len(x), x - mean
    else:
        if int(count.max()) < 2:
            raise InputError("text.whiten: effects needs paraphrases; give effects several prompts, or set it to none")
        within = x - centres[of]
        scatter, kept = within.mT @ within / len(x), centres - mean
    scatter = scatter + config.shrink * scatter.diagonal().mean() * eye
    value, vector = torch.linalg.eigh(scatter)
    root = (vector * value.clamp(min=1e-12).rsqrt()) @ vector.mT
    # Directions in which the fitted points do not differ carry nothing but what was never seen in training.
    spread, direction = torch.linalg.eigh(root @ kept.mT @ kept @ root)
    direction = direction[:, spread > RANK_TOLERANCE * spread[-1]]
    return mean.float(), (root @ direction @ direction.mT).float()


class Components(NamedTuple):
    """What a sentence asks for: N K sentences of one effect each, those of a prompt side by side, and the strength of
    each, [N, K]."""

    text: TextStates
    strength: Tensor


class TextInput(nn.Module):
    """Token states of the encoder -> token states [N, T or 1, D] that the network reads, with their mask.

    A fixed map without parameters: it is applied once to the prompts of a run, and to each prompt at inference. For
    sentences its mean and matrix are buffers, so a checkpoint holds them, in float32 whatever the type of its weights.

    Args:
        config: its form.
        width: D.
    """

    mean: Tensor
    matrix: Tensor
    centres: Tensor
    chance: Tensor
    familiar: Tensor

    def __init__(self, config: TextConfig, width: int) -> None:
        super().__init__()
        self.config = config
        if config.form == "sentence":
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("matrix", torch.eye(width))
        if config.anchors:
            self.register_buffer("centres", torch.zeros(config.anchors, width))
        if config.components > 1:
            self.register_buffer("chance", torch.zeros(2, config.components - 1))
        if config.hedge:
            self.register_buffer("familiar", torch.zeros(1))

    def fit(self, text: TextStates, effects: Tensor) -> None:
        """Fits the map to the training prompts, `text` [N, T, D] with the effect of each, [N].

        Raises:
            ConfigError: `anchors` is not the number of effects.
            InputError: too few prompts or effects for the whitening.
        """
        if self.config.form == "tokens":
            return
        mean, matrix = whitening(sentence_vectors(text), effects, self.config)
        self.mean.copy_(mean)
        self.matrix.copy_(matrix)
        if self.config.anchors:
            names, of = effects.unique(return_inverse=True)
            if (count := len(names)) != self.config.anchors:
                raise ConfigError(f"the library has {count} training effects; set hypernet.text.anchors: {count}")
            sums = torch.zeros_like(self.centres, device="cpu").index_add(0, of.cpu(), self._vectors(text).cpu())
            self.centres.copy_(F.normalize(sums, dim=-1))
        if self.config.components > 1:
            ratios = self._pursuit(self._vectors(text))[1].cpu()
            self.chance.copy_(torch.quantile(ratios, torch.tensor([CHANCE, MEANT]), dim=0))
        if self.config.hedge:
            nearest = (self._vectors(text) @ self.centres.mT).amax(1).cpu()
            self.familiar.copy_(torch.quantile(nearest, FAMILIAR))

    @torch.no_grad()
    def forward(self, text: TextStates) -> TextStates:
        """Sentence vectors come out with a root mean square of 1, as one token each."""
        if self.config.form == "tokens":
            return text
        vectors = self._vectors(text)
        if self.config.anchors:
            vectors = self._pursuit(vectors, 1)[0][:, 0]
        return TextStates(F.rms_norm(vectors, vectors.shape[-1:], eps=1e-12)[:, None], text.mask.any(1, keepdim=True))

    @torch.no_grad()
    def components(self, text: TextStates) -> Components:
        """What to predict for the prompts, and at which strength; with one component and no hedge, what `forward`
        gives, at 1."""
        count = self.config.components
        if count == 1 and not self.config.hedge:
            return Components(self(text), text.mask.new_ones(len(text.mask), 1, dtype=torch.float32))
        sentences = self._vectors(text)
        directions, ratios = self._pursuit(sentences)
        if self.config.hedge:
            directions[:, 0] = self._hedged(sentences)
        further = ratios
        if count > 1:
            low, high = self.chance
            further = ((ratios - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        vectors = F.rms_norm(directions.flatten(0, 1), directions.shape[-1:], eps=1e-12)[:, None]
        mask = text.mask.any(1, keepdim=True).repeat_interleave(count, 0)
        return Components(TextStates(vectors, mask), torch.cat([further.new_ones(len(further), 1), further], 1))

    def _hedged(self, vectors: Tensor) -> Tensor:
        """a_1 [N, D] of unit vectors [N, D], the less sharp the farther all anchors are."""
        cosine = vectors @ self.centres.mT
        strange = self.familiar / cosine.amax(1, keepdim=True).clamp(min=LEAST_COSINE)
        temperature = self.config.temperature * strange.clamp(min=1) ** self.config.hedge
        return F.normalize(torch.softmax(cosine / temperature, dim=-1) @ self.centres, dim=-1)

    def _pursuit(self, vectors: Tensor, components: int | None = None) -> tuple[Tensor, Tensor]:
        """Directions a [N, K, D] of unit vectors v [N, D], and c_k / c_1 of all but the first [N, K - 1]."""
        left, found, c = vectors, [], vectors.new_ones(len(vectors), 1)
        something = []
        for _ in range(components or self.config.components):
            something.append(left.norm(dim=-1) > EXPLAINED)
            cosine = F.normalize(left, dim=-1) @ self.centres.mT
            found.append(F.normalize(torch.softmax(cosine / self.config.temperature, dim=-1) @ self.centres, dim=-1))
            a = torch.stack(found, 1)
            gram = a @ a.mT + RIDGE * torch.eye(len(found), device=a.device)
            c = torch.linalg.solve(gram, (a @ vectors[..., None]))[..., 0]
            left = vectors - (c[..., None] * a).sum(1)
        # The direction of what is left is rounding where nothing is left.
        ratios = c / c[:, :1].clamp(min=1e-6) * torch.stack(something, 1)
        return torch.stack(found, 1), ratios[:, 1:]

    def _vectors(self, text: TextStates) -> Tensor:
        """Centred and whitened sentence vectors of length 1, [N, D]."""
        return F.normalize((sentence_vectors(text) - self.mean) @ self.matrix, dim=-1)
