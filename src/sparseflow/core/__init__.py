"""Ground floor: random streams, exact selection, schedules, gradients, parameters."""
