"""Reading it: a run as values, and what may be said of them."""
