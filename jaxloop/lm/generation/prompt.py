"""The prompt template of the recursive-loops study (arXiv 2504.03814, released code).

It has no system prompt and is no chat template.
"""

TEMPLATE = "### User:\n{instruction}\n### Assistant:\n"


def render(instruction: str) -> str:
    """Return the prompt of an instruction; the text to learn follows it directly, then EOS."""
    return TEMPLATE.replace("{instruction}", instruction)
