"""Data of the recursive-loops paper: cleaning, embeddings, clusters."""
