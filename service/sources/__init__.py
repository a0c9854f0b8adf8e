"""Sources: buckets and prefixes with settings of their own, for example one for each camera."""
