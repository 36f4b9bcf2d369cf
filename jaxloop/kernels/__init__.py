"""What language models and simulators share: keys, the categorical sampler, the weighted
likelihood, chain mapping, mixing.
"""
