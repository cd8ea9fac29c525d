"""MLflow flavors, one a module, with `save_model`, `log_model` and `load_model`; `add_flavor` adds a form."""

from __future__ import annotations

__all__ = ["add_flavor"]

from mlflow_deploy.flavors.add import add_flavor
