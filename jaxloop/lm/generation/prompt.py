"""The prompt template of the recursive-loops study (recursive_loops, section 1): no system prompt,
no chat template.
"""

TEMPLATE = "### User:\n{instruction}\n### Assistant:\n"


def render(instruction: str) -> str:
    """The prompt of an instruction; the text to learn follows it directly, then EOS."""
    return TEMPLATE.replace("{instruction}", instruction)
