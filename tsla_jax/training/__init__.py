"""Training and evaluation: pure steps, and the loop that runs them."""
