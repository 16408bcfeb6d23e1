"""Facts: what a stage of a step measured. A frozen model per stage; every field says what it is, and its unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Unit:
    """The unit of a field, as a report writes it."""

    name: str


Bytes = Annotated[int, Unit("bytes")]
Seconds = Annotated[float, Unit("s")]
Nats = Annotated[float, Unit("nats per token")]
Tokens = Annotated[int, Unit("tokens")]
TokensPerSecond = Annotated[float, Unit("tokens/s")]
Share = Annotated[float, Unit("share, 0 to 1")]
Interval = Annotated[tuple[float, float], Unit("95 % interval")]


class Facts(BaseModel):
    """Base of all facts. The docstring of a field is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def describe(cls) -> dict[str, dict[str, str]]:
        """Each field's description and unit, for a record that explains itself."""
        return {
            name: {
                "description": " ".join((field.description or "").split()),
                "unit": _unit(field.annotation, field.metadata),
            }
            for name, field in cls.model_fields.items()
        }


def _unit(kind: Any, metadata: Iterable[Any]) -> str:
    """The unit of a type or, as in `Seconds | None` and `dict[str, Bytes]`, of one of its parts; empty without one."""
    own = [one.name for one in metadata if isinstance(one, Unit)]
    parts = [_unit(part, getattr(part, "__metadata__", ())) for part in get_args(kind)]
    return next((name for name in own + parts if name), "")
