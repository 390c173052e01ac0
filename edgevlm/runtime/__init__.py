"""One loaded vision-language model: images and prompts in, answers and logits out."""
