"""Where a bias-amplification study keeps what it measures, relative to the run directory."""


def articles_path(chain: str, generation: int) -> str:
    """Return the file of the values of a generation's articles."""
    return f"articles/chain={chain}/generation={generation:04d}.parquet"


def neurons_path(chain: str, generation: int) -> str:
    """Return the file of a model's neurons."""
    return f"neurons/chain={chain}/generation={generation:04d}.parquet"
