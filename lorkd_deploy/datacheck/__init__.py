"""What of the images could make a test lie, told before it is trained on."""

DATA_CHECK = "data-check.json"  # in a run
