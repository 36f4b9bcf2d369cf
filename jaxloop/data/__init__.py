"""Human text: sources, the embedded dataset, cleaning rules, clusters."""

from jaxloop.data.digest import fingerprint
from jaxloop.data.sources import load_texts, rows

__all__ = ["fingerprint", "load_texts", "rows"]
