"""What sparse execution gains in a model, predicted from calibrated costs or measured."""
