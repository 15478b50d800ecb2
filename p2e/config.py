"""Every setting of p2e as pydantic models: unknown keys are refused, units stand in names or docstrings.

Nothing here imports torch, so a laptop can check a run's configuration in milliseconds. A run starts from sparse
YAML; what it resolved to is saved as JSON beside its results.
"""

import json
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from p2e.errors import ConfigError, InputError

__all__ = [
    "AugmentConfig",
    "BindingConfig",
    "HypernetConfig",
    "LossConfig",
    "RenderConfig",
    "Settings",
    "TextConfig",
    "TrainConfig",
]


class Settings(BaseModel):
    """The root of every configuration: frozen, strict about keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @classmethod
    def parse(cls, values: Any, source: str = "configuration") -> Self:
        """Validates plain values.

        Raises:
            ConfigError: one line with the first offending key, its place and what is allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the top level"
            raise ConfigError(f"{source}: {place}: {first['msg']}; see the fields of {cls.__name__}") from None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads YAML or JSON.

        Raises:
            ConfigError: the file is missing, not YAML, or does not fit.
        """
        from p2e.files import read_text

        try:
            values = yaml.safe_load(read_text(path))
        except (yaml.YAMLError, InputError) as error:
            message = " ".join(str(error).split())
            raise ConfigError(message if str(path) in message else f"{path}: not valid YAML ({message})") from None
        return cls.parse({} if values is None else values, str(path))

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


class TextConfig(Settings):
    """What a hypernetwork reads of a prompt (`p2e.hypernet.text`); kept with its weights.

    Attributes:
        form: the encoder's "tokens", or one "sentence" vector, their mean.
        whiten: what a sentence vector is centred and whitened by: "none", the scatter of all training "prompts", or the
            scatter of paraphrases within their "effects", which keeps what tells effects apart; "centre" only centres.
        shrink: added to that scatter, in units of its mean variance.
        anchors: how many training effects a sentence is drawn to, which is all of them; 0 is off. What is read is then
            the mean of their centres, weighed by softmax(cosine / temperature).
        temperature: of that softmax; small ones leave the nearest effect alone.
        components: how many effects a sentence may ask for at once; each after the first is sought in what those
            before it leave unexplained.
        hedge: how much a prediction hedges for a prompt that resembles no training effect: the temperature grows by
            (familiar / cosine to the nearest anchor)^hedge where that is over 1; 0 is not at all.
    """

    form: Literal["tokens", "sentence"] = "tokens"
    whiten: Literal["none", "centre", "prompts", "effects"] = "none"
    shrink: float = Field(default=1.0, gt=0)
    anchors: int = Field(default=0, ge=0)
    temperature: float = Field(default=0.1, gt=0)
    components: int = Field(default=1, ge=1)
    hedge: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.form == "tokens" and self.whiten != "none":
            raise ValueError(f"whiten: {self.whiten} is for sentence vectors; set form: sentence")
        if self.form == "tokens" and self.anchors:
            raise ValueError("anchors are for sentence vectors; set form: sentence")
        if self.components > max(self.anchors, 1):
            raise ValueError("components are sought among the anchors; set anchors, or components: 1")
        if self.hedge and not self.anchors:
            raise ValueError("a prediction hedges between anchors; set anchors, or hedge: 0")
        return self


class HypernetConfig(Settings):
    """Size and form of the hypernetwork; the defaults are the paper's setting for Wan (table 7).

    Attributes:
        width: d, hidden width.
        layers: blocks of the backbone.
        heads: attention heads; they divide the width.
        latents: n, tokens that a site's weight is compressed to.
        rank: r, rank of the predicted LoRA; that of the prepared library.
        ffn_ratio: inner width of the gated feed-forward, in units of `width`.
        position_scale: root mean square of the position codes, beside weight tokens of about 1.
        qk_norm: RMS-normalise queries and keys per head, which keeps bf16 attention over 10,000 tokens stable.
        residual: add the weight tokens to what the heads read. Linear, so it still folds: see `p2e.hypernet.model`.
        weights: what takes the place of W0 (ablation of the paper, table 8 and "Noise" of table 3).
        svd_rank: singular directions kept by "truncated_svd"; None is half of the smallest width of the base.
        ensemble: one network a block of the base instead of one for all ("Ensemble", table 3).
        across_sites: every block also attends across sites at equal latent index.
        architecture: the paper's network, or the baseline of its tables 1 and 2.
        iterations: refinement passes of the "hyperdreambooth" baseline.
        text: what it reads of a prompt.
    """

    width: int = Field(default=2048, ge=8)
    layers: int = Field(default=14, ge=1)
    heads: int = Field(default=32, ge=1)
    latents: int = Field(default=256, ge=1)
    rank: int = Field(default=32, ge=1)
    ffn_ratio: float = Field(default=4.0, gt=0)
    position_scale: float = Field(default=0.3, ge=0)
    qk_norm: bool = True
    residual: bool = True
    weights: Literal["full", "none", "truncated_svd", "noise"] = "full"
    svd_rank: int | None = Field(default=None, ge=1)
    ensemble: bool = False
    across_sites: bool = False
    architecture: Literal["prompt2effect", "hyperdreambooth"] = "prompt2effect"
    iterations: int = Field(default=4, ge=1)
    text: TextConfig = TextConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} must divide width {self.width}")
        if self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4, for the position codes")
        if self.ensemble and self.across_sites:
            raise ValueError("ensemble and across_sites contradict each other; choose one")
        if self.architecture == "hyperdreambooth" and (self.weights != "full" or self.ensemble):
            raise ValueError("the hyperdreambooth baseline reads no weights; leave out weights and ensemble")
        return self


class BindingConfig(Settings):
    """Where a binding lies and how much of it is computed at once.

    Attributes:
        device_gb: 1e9 bytes of queries kept on the device.
        host_gb: 1e9 bytes of queries kept in pinned host memory, for those that do not fit the device.
        piece_tokens: weight tokens of a piece; its queries take 2 d bytes a token in bfloat16.
        latent_tokens: of one pass of the backbone, at least one piece; the more, the better a GPU is filled.
        effects_at_once: prompts in one pass.
        compile: compile the backbone's block and the decompressor, once for each size of piece and number of prompts
            (and, without kernels, for each multiple of 64 text tokens); another prompt compiles nothing.
        kernels: attention in Triton kernels, on a GPU that runs them.
        fp8: matrix products of the backbone in float8 (e4m3), with a scale a row of each factor.
    """

    device_gb: float = Field(default=1e3, ge=0)
    host_gb: float = Field(default=1e3, ge=0)
    piece_tokens: int = Field(default=410_000, ge=1)
    latent_tokens: int = Field(default=10_240, ge=1)
    effects_at_once: int = Field(default=8, ge=1)
    compile: bool = False
    kernels: bool = True
    fp8: bool = False


class LossConfig(Settings):
    """Training objective: (1 - update) x eq. 13 + update x relative error of the update.

    Attributes:
        update: weight of the update's relative error, 0 (the paper) to 1.
        epsilon: added to each target's mean square, where a library's typical mean square is 1.
        blend: what a prompt between two effects asks for (`augment.blend`): the weighed "mean" of their updates, or
            their "sum", one at full strength and the other at up to that.
    """

    update: float = Field(default=0.0, ge=0, le=1)
    epsilon: float = Field(default=1e-6, gt=0)
    blend: Literal["mean", "sum"] = "mean"


class MetricConfig(Settings):
    """Where the base is sensitive, so that errors count there (`p2e.training.metric`).

    Attributes:
        moments: file of the sites' moments (`p2e.adapt.moments`).
        power: of the curvature: 1 is all of it, 0 the plain Frobenius norm.
        damping: added to moments of mean eigenvalue 1.
    """

    moments: str
    power: float = Field(default=0.5, ge=0, le=1)
    damping: float = Field(default=0.01, gt=0)


class AugmentConfig(Settings):
    """How training varies the prompts of a step (`p2e.training.augment`); the default is not at all.

    Attributes:
        noise: standard deviation of Gaussian noise on what the network reads, in units of its root mean square.
        token_dropout: share of a prompt's tokens that are hidden.
        mix: share of the effects whose sentence is a random point between two of their paraphrases.
        blend: share of the effects that are blended with another of the step: their sentence and their update are
            lerped by the same random amount up to a half, and the loss is that of the update alone.
    """

    noise: float = Field(default=0.0, ge=0)
    token_dropout: float = Field(default=0.0, ge=0, lt=1)
    mix: float = Field(default=0.0, ge=0, le=1)
    blend: float = Field(default=0.0, ge=0, le=1)

    @property
    def active(self) -> bool:
        return bool(self.noise or self.token_dropout or self.mix or self.blend)


class TrainConfig(Settings):
    """A training run of the hypernetwork.

    Attributes:
        library: folder of the prepared library.
        base: a base model's folder, or "world".
        output: the run's folder: checkpoint, optimizer state, logs. Running again with the same folder resumes.
        augment: how the prompts are varied.
        metric: weigh errors by the base's sensitivity; None is the Frobenius norm of the paper.
        steps: optimizer steps of the whole run.
        sites_per_step: sites a step, shared out over the shapes of the base; at least one of each shape.
        effects_per_step: effects a step; every site of the step is paired with every effect of the step.
        micro_batches: draws a step, each with `sites_per_step` sites and `effects_per_step` effects of its own; the
            step follows the mean of their gradients. Workers share them out, so that a step is the same for any number.
        learning_rate: peak rate.
        warmup_fraction: share of `steps` in which the rate rises linearly (the paper: 0.01 %).
        decay: "constant", or "cosine" down to `final_fraction` of the peak.
        clip: largest L2 norm of the gradient.
        ema: decay of an average of the weights that is what the checkpoint holds, reached over the first steps; None is
            off.
        precision: type of the matrix products; parameters and optimizer state are always float32.
        checkpoint_precision: type of the weights in the checkpoint.
        device: "auto" takes a GPU where there is one.
        checkpoint_every, evaluate_every, log_every: steps; 0 is only at the end. Evaluation reports held-out effects.
        compile: compile the step with torch.compile (shapes are fixed, so it compiles once).
        cuda_graph: replay the step as one CUDA graph; needs a GPU and data that fit `resident_gb`.
        resident_gb: keep W0 and targets on the device while they take at most so many gigabytes (1e9 bytes).
        tensorboard: write scalars to `output`/tensorboard.
    """

    library: str
    base: str = "world"
    output: str
    hypernet: HypernetConfig = HypernetConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    metric: MetricConfig | None = None
    steps: int = Field(default=20_000, ge=1)
    sites_per_step: int = Field(default=20, ge=1)
    effects_per_step: int = Field(default=24, ge=1)
    micro_batches: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=5e-5, gt=0)
    warmup_fraction: float = Field(default=1e-4, ge=0, le=1)
    decay: Literal["constant", "cosine"] = "constant"
    final_fraction: float = Field(default=0.03, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    ema: float | None = Field(default=None, gt=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    checkpoint_every: int = Field(default=0, ge=0)
    evaluate_every: int = Field(default=0, ge=0)
    log_every: int = Field(default=50, ge=1)
    compile: bool = False
    cuda_graph: bool = False
    resident_gb: float = Field(default=16.0, ge=0)
    tensorboard: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.cuda_graph and self.hypernet.ensemble:
            raise ValueError("an ensemble routes on the host, which a CUDA graph cannot hold; set cuda_graph: false")
        if self.cuda_graph and self.micro_batches > 1:
            raise ValueError("a CUDA graph holds one micro-batch a step; set micro_batches: 1, or cuda_graph: false")
        sentence = self.hypernet.text.form == "sentence"
        if not sentence and (self.augment.mix or self.augment.blend):
            raise ValueError("augment.mix and augment.blend are of sentence vectors; set hypernet.text.form: sentence")
        if sentence and self.augment.token_dropout:
            raise ValueError("a sentence is one token, which cannot be dropped; set augment.token_dropout: 0")
        return self


class RenderConfig(Settings):
    """How a clip is rendered. The defaults are the embedded world's.

    Attributes:
        height, width: pixels.
        frames: 1 plus a multiple of the autoencoder's temporal factor (4).
        fps: frames per second that the base was trained at.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 1 or less leaves the second pass out.
        negative_prompt: what guidance leads away from; "" stands for no text at all (zero states).
        max_rank: rank of the LoRA slot.
        schedule: "base", the pipeline's own scheduler; or "euler", Euler steps of the flow, which bases and LoRAs that
            were distilled to a few steps are made for (they also want a guidance of 1).
        shift: of the euler schedule's times towards noise.
    """

    height: int = Field(default=96, ge=16, le=4096)
    width: int = Field(default=96, ge=16, le=4096)
    frames: int = Field(default=17, ge=1, le=1001)
    fps: float = Field(default=8.0, gt=0, le=240)
    steps: int = Field(default=10, ge=1, le=1000)
    guidance: float = Field(default=1.0, ge=0, le=100)
    negative_prompt: str = ""
    max_rank: int = Field(default=64, ge=1, le=4096)
    schedule: Literal["base", "euler"] = "base"
    shift: float = Field(default=5.0, gt=0, le=100)
