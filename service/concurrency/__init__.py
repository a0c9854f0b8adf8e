"""What many threads share: slots, a fair semaphore, and workers that process batches."""
