"""Every kind of family, assigned to its protocol; `test_family.py` runs mypy over this file."""

from jaxloop.config.sections import FitConfig, SampleConfig
from jaxloop.lm.family import LanguageModelFamily, load
from jaxloop.lm.io.huggingface import Model
from jaxloop.recursion.family import Family, FamilyFunctions
from tests.recursion.unigram import FitSettings, SampleSettings, Unigram
from tests.recursion.unigram import Model as Counts

language_models: Family[Model, FitConfig, SampleConfig] = LanguageModelFamily(load)
double: Family[Counts, FitSettings, SampleSettings] = Unigram()
of_functions: Family[Counts, FitSettings, SampleSettings] = FamilyFunctions(
    double.load, double.fit, double.generate
)

# mypy warns where an `ignore` is not needed, so these say what it must refuse.
no_family: Family[Counts, FitSettings, SampleSettings] = object()  # type: ignore[assignment]
other_settings: Family[Counts, FitSettings, FitSettings] = Unigram()  # type: ignore[assignment]
