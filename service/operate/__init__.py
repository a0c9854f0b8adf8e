"""What an operator does besides the service: submit, reconcile, replay, smoke-test, detect."""
