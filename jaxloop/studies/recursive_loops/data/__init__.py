"""From raw posts to clusters of the recursive-loops paper."""
