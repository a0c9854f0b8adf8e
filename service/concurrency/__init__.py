"""What many threads share: slots, amounts, and workers that take batches."""
