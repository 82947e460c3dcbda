"""Callbacks for other trainers, and writers for other viewers; each needs an extra."""
