"""The demo: a tracking server, a trained model, a promotion, a deployment, traffic, a drift table."""
