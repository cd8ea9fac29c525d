"""What runs inside the MLflow server."""
