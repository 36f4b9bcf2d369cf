"""Configs: their sections and files, command-line overrides, and errors about their fields."""

from jaxloop.config.files import read_file
from jaxloop.config.messages import field_names, nearest, reference, suggestion
from jaxloop.config.overrides import annotation_at, change, override
from jaxloop.config.renames import current_names, stored_names
from jaxloop.config.sections import (
    CSV_OPTIONS,
    DELIMITER,
    ChainSection,
    CsvOptions,
    DataConfig,
    FitConfig,
    LoraConfig,
    ModelsConfig,
    RunConfig,
    SampleConfig,
)
from jaxloop.config.types import (
    Count,
    Factors,
    NonNegative,
    Positive,
    Probability,
    Rename,
    Section,
    Seed,
    Share,
    Text,
    Whole,
)
from jaxloop.config.validation import build, fingerprint

__all__ = [
    "CSV_OPTIONS",
    "DELIMITER",
    "ChainSection",
    "Count",
    "CsvOptions",
    "DataConfig",
    "Factors",
    "FitConfig",
    "LoraConfig",
    "ModelsConfig",
    "NonNegative",
    "Positive",
    "Probability",
    "Rename",
    "RunConfig",
    "SampleConfig",
    "Section",
    "Seed",
    "Share",
    "Text",
    "Whole",
    "annotation_at",
    "build",
    "change",
    "current_names",
    "field_names",
    "fingerprint",
    "nearest",
    "override",
    "read_file",
    "reference",
    "stored_names",
    "suggestion",
]
