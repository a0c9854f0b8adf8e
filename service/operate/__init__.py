"""What an operator's commands do: submit, reconcile, replay dead letters, smoke-test, detect."""
