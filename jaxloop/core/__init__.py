"""What language models and simulators share: keys, draws, likelihoods, mapping over chains."""
