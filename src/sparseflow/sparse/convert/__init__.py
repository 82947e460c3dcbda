"""From a dense model to a sparse one: traced once, rewritten to the blocked layout; and back."""
