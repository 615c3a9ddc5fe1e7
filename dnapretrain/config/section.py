"""What all sections have in common."""

from __future__ import annotations

import contextlib
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator


class Section(BaseModel):
    """A frozen part of the tree that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML 1.1 reads 1e5 as a string; pydantic makes numbers of such strings, but whole ones only for float fields.
        if isinstance(value, str) and cls.model_fields[info.field_name or ""].annotation in (int, int | None):
            with contextlib.suppress(ValueError):
                return float(value)
        return value
