"""Models with a formula: what the formulas say beside what simulations give."""
