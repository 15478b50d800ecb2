"""What the judge answers. The total and its cap are computed here and never asked of the model."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["HARD_FAIL_CAP", "SCHEMA", "Verdict"]

HARD_FAIL_CAP = 20
REASON_LIMIT = 400  # bounds an answer; the sampler's max_tokens leaves room for as much


class Verdict(BaseModel):
    """A verdict; the reason comes first, so that the numbers follow from it.

    Attributes:
        effect: points for carrying out the effect, 0 to 60.
        context: for keeping the subject's identity and the surroundings, 0 to 20.
        temporal: for motion, physics and freedom from artefacts, 0 to 20.
        hard_fail: the effect fails to happen, the subject is destroyed, or the picture is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    reason: str = Field(max_length=REASON_LIMIT)
    effect: int = Field(ge=0, le=60)
    context: int = Field(ge=0, le=20)
    temporal: int = Field(ge=0, le=20)
    hard_fail: bool

    @property
    def total(self) -> int:
        """0 to 100; at most 20 where it fails outright."""
        points = self.effect + self.context + self.temporal
        return min(points, HARD_FAIL_CAP) if self.hard_fail else points


def _schema() -> dict[str, Any]:
    """The JSON schema that a server holds the answer to. Written by hand from the fields' bounds: what pydantic makes
    holds titles and descriptions, which some servers read to the model."""
    limits = {"effect": 60, "context": 20, "temporal": 20}
    points = {name: {"type": "integer", "minimum": 0, "maximum": top} for name, top in limits.items()}
    properties = {"reason": {"type": "string", "maxLength": REASON_LIMIT}, **points, "hard_fail": {"type": "boolean"}}
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False
    }  # fmt: skip


SCHEMA = _schema()
