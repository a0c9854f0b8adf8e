"""What is published after a commit: the results topic, and the steps that publish."""
