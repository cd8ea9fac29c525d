"""The gateway: Envoy in front of a deployment; weights, mirror, retries, statistics per revision."""
