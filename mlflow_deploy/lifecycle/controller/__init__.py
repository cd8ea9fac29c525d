"""The controller: follows the registry and makes deployments match it."""
