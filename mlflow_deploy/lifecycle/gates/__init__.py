"""Gates: checks that a model version must pass before it is deployed or promoted. One file per gate."""
