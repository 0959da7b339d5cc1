"""The Grafana dashboard and the alert rules, made from the names in `collectors.metrics`."""
