"""mlflow_deploy: takes models from MLflow's registry into production and keeps them honest there."""

__version__ = "0.1.0"
