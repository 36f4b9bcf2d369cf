"""What every model of the package shares: keys, draws, likelihoods, mixing weights, mapping over chains."""
