"""Growing a suite: failures that were seen become cases that are asked from then on, once a person says so."""
