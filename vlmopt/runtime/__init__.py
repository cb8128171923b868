"""The only place that touches a model: what is installed on it, and what happens during a call."""
