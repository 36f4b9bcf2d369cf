"""Writing texts: sampling, the decoding loops, the scheduler of slots, beam search."""
