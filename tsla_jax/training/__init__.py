"""Training and evaluation: pure steps, and the one loop that drives them."""
