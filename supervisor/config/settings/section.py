"""What all tables of the configuration share: their base, and values with units."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from supervisor.config.units import parse_rate_bytes_per_s, parse_size_bytes

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(ge=0)]
Size = Annotated[str, AfterValidator(lambda text: parse_size_bytes(text) and text)]
Rate = Annotated[str, AfterValidator(lambda text: parse_rate_bytes_per_s(text) and text)]
Percent = Annotated[float, Field(gt=0, le=100)]


class Section(BaseModel):
    """Base of all tables: frozen, and a key that nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
