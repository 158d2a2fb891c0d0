"""Check, reference and render the parameters of operators."""
