"""A language model as a judge of kept answers: asked in both orders, calibrated on people, and never trusted alone."""
