"""What every part of the record is: a frozen model that knows its fields and no other."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

VERSION: Final = 2
"""Version of `run.json` and of each line of `gates.jsonl`. `docs/record.md` says what each version added."""


class RecordModel(BaseModel):
    """A part of the record. The docstrings of its fields are their descriptions in the published schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
