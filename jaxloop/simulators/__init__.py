"""Models with a formula, run by the same plans and kernels as language models: linear dynamics of
many entities, WMLE, and families.
"""
