"""From socket traffic to requests: the wire tracer, HTTP/1.1, joining requests to steps."""
