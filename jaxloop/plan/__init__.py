"""What a compiler says of our programs on hardware that is absent: memory, kernels, bytes,
arithmetic, rooflines.
"""
