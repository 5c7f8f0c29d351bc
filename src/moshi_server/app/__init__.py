"""The web application: the only place that knows HTTP statuses and close codes."""
