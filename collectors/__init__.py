"""From events of the feed and statuses of daemons to metrics: Prometheus and OTLP."""
