"""What was lost on the way: prompts, answers and, later, distributions."""
