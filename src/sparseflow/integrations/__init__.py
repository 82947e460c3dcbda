"""Callbacks for other trainers, and writers for other viewers; each module needs an extra."""
