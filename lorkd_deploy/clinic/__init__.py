"""What a hospital does with answers: keeps them, and watches whether they still fit its images."""
